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

LOG_GROUP_BYTES_MAX = 4 * MIB
"""A log object is closed at this size."""
WRITE_QUEUE_BYTES_MAX = 128 * MIB
"""Rows waiting for the log on one node; beyond it writers are told to slow down."""
FRAME_BYTES_MAX = 2**31 - 1
FLUSH_ROWS = 131_072
"""Rows in the log since the last manifest that start a flush."""
REQUESTS_REMEMBERED_MAX = 65_536
"""Requests whose ids a shard remembers, so that a late retry has the effect of once."""
ETCD_TXN_OPERATIONS_MAX = 128
"""Operations, or guards, that etcd takes in one transaction by default."""
ETCD_TXN_SHARDS_MAX = 40
"""Shards committed in one etcd transaction."""

STORE_REQUESTS_MAX = 32
"""Requests to an S3 store under way at once in one process."""
STORE_WAITING_MAX = 1024
"""Requests to an S3 store that wait in one process; beyond it callers are told to slow down."""

FLOAT32_BYTES = 4

assert ENROL_ROWS_MAX * DIM_MAX * FLOAT32_BYTES < MESSAGE_BYTES_MAX, "a full batch must fit"
assert PROBES_MAX * DIM_MAX * FLOAT32_BYTES < MESSAGE_BYTES_MAX, "a full batch must fit"
assert MESSAGE_BYTES_MAX < CHANNEL_BYTES_MAX
assert CANDIDATES_MAX * (2 * ID_BYTES_MAX + 32) < CHANNEL_BYTES_MAX, "an answer must fit"
assert K_MAX <= CANDIDATES_MAX
assert 127 * 128 * DIM_MAX < 2**24, "dot products must stay exact in float32, see facegrid.vectors"
assert ETCD_TXN_SHARDS_MAX * 3 <= ETCD_TXN_OPERATIONS_MAX, (
    "two comparisons and one put for each shard"
)
