"""Every limit by name, and the relations between them.

Limits are published: clients read them here, the protos repeat them, requests beyond them are
refused with the limit's name.
"""

from facegrid.ids import ID_BYTES_MAX

MIB = 1024 * 1024

DIM_MIN = 8
DIM_MAX = 1024
DIM_STEP = 4
"""Each PQ sub-quantizer covers four components, so a dimension is a multiple of four."""

K_MAX = 2048
PROBES_MAX = 1024
CANDIDATES_MAX = 131_072
"""Probes times k of one call, so that the longest possible answer fits into a channel."""
ENROL_ROWS_MAX = 4096
ERASE_IDS_MAX = 4096
SHARDS_MAX = 1024
REPLICAS_MAX = 5
EXTRACTOR_CHARS_MAX = 128
TRAIN_AT_DEFAULT = 262_144
TRAIN_ROWS_MIN = 1024
"""Fewer rows than this give a codebook that is worse than searching exactly."""

NORM_MIN = 0.5
NORM_MAX = 2.0

MESSAGE_BYTES_MAX = 24 * MIB
"""Largest message a service accepts."""
CHANNEL_BYTES_MAX = 64 * MIB
"""Largest message a channel carries. Above MESSAGE_BYTES_MAX, so that a message that is too large
reaches the code that says so in a typed error; beyond it gRPC itself refuses."""

DEADLINE_S_MAX = 3600.0

STALENESS_S = 3.0
"""How long what a linearizable read of etcd returned counts as confirmed: from when the read was
sent, by the reader's own boot clock."""
STALENESS_MARGIN_S = 0.5
"""Waited beyond STALENESS_S by whoever relies on a confirmation having run out, for clocks of two
machines that do not run equally fast."""

CONFIRMATION_OVER_S = STALENESS_S + STALENESS_MARGIN_S
"""After this time nothing that was not confirmed since can be taken for confirmed."""
LINGER_S = 2.0
"""How long a copy that the map has taken away goes on answering routers that have not heard."""

LOG_GROUP_BYTES_MAX = 4 * MIB
"""A log object is closed at this size."""
WRITE_QUEUE_BYTES_MAX = 128 * MIB
"""Rows waiting for the log on one node; beyond it writers are told to slow down."""
FRAME_BYTES_MAX = 2**31 - 1
FLUSH_ROWS = 131_072
"""Rows in the log since the last manifest that start a flush."""
FLUSH_RECORDS = 8192
"""Likewise records, of which each may be a log object by itself, and have no rows."""
ERASURES_NOTED = 256
"""Records of erasures that a follower keeps before it asks which of them the journal has."""
FLUSH_STEP_ROWS = 8192
"""Rows handled in one step where a segment is made in steps, so that other work gets its turn."""
REPACK_ERASED_MIN = 1024
"""Erased rows that a shard may keep in memory, however small it is."""
REPACK_ERASED_SHARE = 0.25
"""Share of a shard's rows that may be erased and still in memory."""
REPACK_STEP_ROWS = 16_384
"""Rows copied at a time, so that other work of a node gets its turn in between."""
LOAD_SEGMENTS_MAX = 8192
"""Segments of one shard in one bulk load: a billion rows in segments of the size of a flush."""
LOAD_ROWS_MAX = 2**27
"""Rows of one shard in one bulk load: the record may have a bit for each."""
REQUESTS_REMEMBERED_MAX = 65_536
"""Requests whose ids a shard remembers, so that a late retry has the effect of once."""
REQUESTS_INHERITED_MAX = 2 * REQUESTS_REMEMBERED_MAX
"""The same, of requests carried out by the shards in whose place it is: two, after a merge."""
ETCD_TXN_OPERATIONS_MAX = 128
"""Operations, or guards, that etcd takes in one transaction by default."""
ETCD_TXN_SHARDS_MAX = 40
"""Shards committed in one etcd transaction."""

OPERATIONS_AT_ONCE_DEFAULT = 2
"""Operations at work at one time, unless the operator says otherwise."""
OPERATIONS_AT_ONCE_MAX = 16
"""The most that an operator may say."""
OPERATIONS_KEPT_MAX = 100
"""Operations that are over, and remembered; older ones are forgotten."""
SPLIT_TEMPLATES_MIN = 1024
"""Fewer templates than this are not split: they are searched in no time as they are."""
MERGED_SHARDS_MAX = 16
"""Shards that become one in one merge: each is a guard and a put of one transaction."""
HOLD_MS_MAX = 1000
"""How long writes to a shard are held back before a cutover."""

STORE_REQUESTS_MAX = 32
"""Requests to an S3 store under way at once in one process."""
STORE_WAITING_MAX = 1024
"""Requests to an S3 store that wait in one process; beyond it callers are told to slow down."""

FLOAT32_BYTES = 4

assert ENROL_ROWS_MAX * DIM_MAX * FLOAT32_BYTES < MESSAGE_BYTES_MAX, "a full batch must fit"
assert PROBES_MAX * DIM_MAX * FLOAT32_BYTES < MESSAGE_BYTES_MAX, "a full batch must fit"
assert MESSAGE_BYTES_MAX < CHANNEL_BYTES_MAX
assert CANDIDATES_MAX * (2 * ID_BYTES_MAX + 32) < CHANNEL_BYTES_MAX, "an answer must fit"
assert LOAD_ROWS_MAX // 8 + 64 * LOAD_SEGMENTS_MAX < MESSAGE_BYTES_MAX, "a record must fit a group"
assert K_MAX <= CANDIDATES_MAX
assert 0 < STALENESS_MARGIN_S < STALENESS_S
assert 127 * 128 * DIM_MAX < 2**24, "dot products must stay exact in float32, see facegrid.vectors"
assert ETCD_TXN_SHARDS_MAX * 3 <= ETCD_TXN_OPERATIONS_MAX, (
    "two comparisons and one put for each shard"
)
