/* From rows worth a look to the answer of a shard, as indexd.ann.rescore does it in NumPy, bit for bit.
 *
 * A row that is rescored lies somewhere in memory, so most of the time goes into waiting for it:
 * here the next rows are fetched while one is computed, and each is read once. The tests hold this
 * and the NumPy code to the same answers.
 *
 * Dot products are exact: |probe| <= 16256 and |code| <= 127, so that a sum over at most 1,024
 * components stays below 2**31 (indexd.ann.native.library asserts the dimension).
 */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define ROW_BITS 32
#define ROW_MASK 0xffffffffLL
#define LAST INT64_MAX
#define LINE_BYTES 64
/* Rows fetched ahead; with 2, 4 or 8 it was equally fast, without half as fast. */
#define AHEAD 4
#define PROBE_STEP 128
#define DIM_MAX 1024
#define VACANT (-1)

/* The loop over components is compiled for several kinds of processors; the loader chooses. */
#if defined(ONE_PROCESSOR) || !defined(__x86_64__) || !defined(__linux__) || defined(__clang__)
#define FOR_EACH_PROCESSOR
#elif __GNUC__ >= 12
#define FOR_EACH_PROCESSOR __attribute__((target_clones("arch=x86-64-v4", "avx2", "default")))
#else
#define FOR_EACH_PROCESSOR __attribute__((target_clones("avx2", "default")))
#endif

#ifndef SOURCE
#define SOURCE "unknown"
#endif
/* What this was compiled from: the loader compares it with the file beside. */
const char *facegrid_source = SOURCE;

/* The rows of a shard: see indexd.ann.rows. packed: as indexd.ann.packing has them, with as many
 * bytes as half the components.
 */
typedef struct {
    const uint8_t *const *chunks;
    int64_t chunk_rows;
    int64_t dim;
    const int32_t *squares;
    const int32_t *subjects;
    const uint8_t *erased;
    int64_t packed;
} Rows;

/* Probes, [count, dim] and [count]: see facegrid.vectors.Probes. */
typedef struct {
    const float *high;
    const float *low;
    const double *norm;
    int64_t count;
} Probes;

FOR_EACH_PROCESSOR
static int32_t product(const int16_t *restrict probe, const int8_t *restrict row, int64_t dim)
{
    int32_t sum = 0;
    for (int64_t i = 0; i < dim; i++)
        sum += (int32_t)probe[i] * (int32_t)(int16_t)row[i];
    return sum;
}

/* round(level * 127 / 7) of a level counted from -8, as facegrid.vectors has it. */
#define CODE_OF(level) ((int8_t)(18 * ((level) - 8) + ((level) > 11) - ((level) < 5)))

/* The low halves of a packed row's bytes are the first half of its components. */
FOR_EACH_PROCESSOR
static void unpack(const uint8_t *restrict packed, int64_t half, int8_t *restrict codes)
{
    for (int64_t i = 0; i < half; i++) {
        int8_t low = packed[i] & 15, high = packed[i] >> 4;
        codes[i] = CODE_OF(low);
        codes[half + i] = CODE_OF(high);
    }
}

/* Writes packed rows, [rows, half], as int8 [rows, 2 * half]. */
void facegrid_unpack(const uint8_t *packed, int64_t rows, int64_t half, int8_t *codes)
{
    for (int64_t row = 0; row < rows; row++)
        unpack(packed + row * half, half, codes + row * 2 * half);
}

static int64_t row_bytes(const Rows *rows)
{
    return rows->packed ? rows->dim / 2 : rows->dim;
}

static const uint8_t *row_at(const Rows *rows, int64_t row)
{
    return rows->chunks[row / rows->chunk_rows] + (row % rows->chunk_rows) * row_bytes(rows);
}

static void fetch(const Rows *rows, int64_t row)
{
    const uint8_t *at = row_at(rows, row);
    for (int64_t byte = 0; byte < row_bytes(rows); byte += LINE_BYTES)
        __builtin_prefetch(at + byte);
    __builtin_prefetch(rows->squares + row);
    __builtin_prefetch(rows->subjects + row);
}

static void load_probe(const Probes *probes, int64_t number, int64_t dim, int16_t *probe)
{
    const float *high = probes->high + number * dim, *low = probes->low + number * dim;
    for (int64_t i = 0; i < dim; i++)
        probe[i] = (int16_t)(PROBE_STEP * (int32_t)high[i] + (int32_t)low[i]);
}

/* As facegrid.vectors.scores_of: two roundings to double, one to float. */
static float score_of(const Rows *rows, const int16_t *probe, double norm, int64_t row)
{
    const uint8_t *at = row_at(rows, row);
    int8_t codes[DIM_MAX];
    if (rows->packed)
        unpack(at, rows->dim / 2, codes);
    double dot = (double)product(probe, rows->packed ? codes : (const int8_t *)at, rows->dim);
    double cosine = dot / (norm * sqrt((double)rows->squares[row]));
    if (cosine > 1.0)
        cosine = 1.0;
    if (cosine < -1.0)
        cosine = -1.0;
    return (float)cosine;
}

/* A number that sorts by falling score, then rising row. */
static int64_t key_of(float score, int64_t row)
{
    int32_t bits;
    score += 0.0f; /* makes -0.0 into 0.0 */
    memcpy(&bits, &score, sizeof bits);
    int64_t rising = bits < 0 ? -(1LL << 31) - bits : bits;
    return -rising * (1LL << ROW_BITS) | row;
}

static float score_of_key(int64_t key)
{
    int64_t rising = -(key >> ROW_BITS);
    int32_t bits = (int32_t)(rising < 0 ? -(1LL << 31) - rising : rising);
    float score;
    memcpy(&score, &bits, sizeof score);
    return score;
}

/* Keys of candidates, int64 [probes, width] both; -1 stands for none and gets LAST. */
void facegrid_keys(const Rows *rows, const Probes *probes, const int64_t *candidates, int64_t width,
                   int64_t *keys)
{
    int16_t probe[DIM_MAX];
    int64_t last = probes->count * width;
    for (int64_t number = 0; number < probes->count; number++) {
        load_probe(probes, number, rows->dim, probe);
        for (int64_t at = number * width; at < (number + 1) * width; at++) {
            if (at + AHEAD < last && candidates[at + AHEAD] >= 0)
                fetch(rows, candidates[at + AHEAD]);
            int64_t row = candidates[at];
            keys[at] = row < 0 ? LAST : key_of(score_of(rows, probe, probes->norm[number], row), row);
        }
    }
}

static void sink(int64_t *heap, int64_t count, int64_t at)
{
    int64_t key = heap[at];
    for (int64_t child; (child = 2 * at + 1) < count; at = child) {
        if (child + 1 < count && heap[child + 1] < heap[child])
            child++;
        if (heap[child] >= key)
            break;
        heap[at] = heap[child];
    }
    heap[at] = key;
}

/* Puts a subject into a set; tells whether it was new. The set has more places than members. */
static int add(int32_t *set, uint32_t mask, int32_t subject)
{
    uint32_t place = (uint32_t)subject * 2654435761u & mask;
    for (; set[place] != VACANT; place = (place + 1) & mask)
        if (set[place] == subject)
            return 0;
    set[place] = subject;
    return 1;
}

/* The best row of each of the best k subjects of each probe, as indexd.ann.rescore.answer.
 *
 * whole: [2, probes], whether there are no other rows below tail_first, and from there on.
 * counts [probes], found and scores [probes, k], done [probes]: what it writes.
 * Returns 0, or 1 when there is no memory.
 */
int facegrid_answer(const Rows *rows, const Probes *probes, const int64_t *candidates, int64_t width,
                    int64_t tail_first, const uint8_t *whole, int64_t k, float threshold,
                    int32_t *counts, int64_t *found, float *scores, uint8_t *done)
{
    int16_t probe[DIM_MAX];
    int64_t last = probes->count * width, members = k < width ? k : width;
    uint32_t places = 4;
    while (places < 2 * members + 1)
        places *= 2;
    int64_t *keys = malloc((size_t)(width + 1) * sizeof *keys);
    int32_t *set = malloc(places * sizeof *set);
    if (keys == NULL || set == NULL) {
        free(keys);
        free(set);
        return 1;
    }
    for (int64_t number = 0; number < probes->count; number++) {
        int64_t count = 0, subjects = 0, kept = 0;
        int below_coded = whole[number], below_tail = whole[probes->count + number];
        load_probe(probes, number, rows->dim, probe);
        for (int64_t at = number * width; at < (number + 1) * width; at++) {
            if (at + AHEAD < last && candidates[at + AHEAD] >= 0)
                fetch(rows, candidates[at + AHEAD]);
            int64_t row = candidates[at];
            if (row < 0)
                continue;
            float score = score_of(rows, probe, probes->norm[number], row);
            if (score < threshold) {
                if (row < tail_first)
                    below_coded = 1;
                else
                    below_tail = 1;
            }
            keys[count++] = key_of(score, row);
        }
        for (int64_t at = count / 2; at-- > 0;)
            sink(keys, count, at);
        memset(set, 0xff, places * sizeof *set); /* VACANT everywhere */
        while (count > 0 && subjects < k) {
            int64_t key = keys[0], row = key & ROW_MASK;
            keys[0] = keys[--count];
            sink(keys, count, 0);
            if (rows->erased[row] || !add(set, places - 1, rows->subjects[row]))
                continue;
            subjects++;
            float score = score_of_key(key);
            if (score >= threshold) {
                found[number * k + kept] = row;
                scores[number * k + kept++] = score;
            }
        }
        done[number] = subjects >= k || (below_coded && below_tail);
        counts[number] = done[number] ? (int32_t)kept : 0;
    }
    free(keys);
    free(set);
    return 0;
}
