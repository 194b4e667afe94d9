// Quantisation of frozen weights and back: bf16, int8 by row, and 4-bit NormalFloat with nested 8-bit scales.
// Formats, parts and sources: src/device/packed.ts. Rounding: to nearest; between two codes as near, the lower.
#include "packed.h"
#include <math.h>

// The quantiles of the normal distribution that QLoRA's appendix E lists.
static const float BOOK[16] = {
    -1.0f,                 -0.6961928009986877f,  -0.5250730514526367f,  -0.39491748809814453f,
    -0.28444138169288635f, -0.18477343022823334f, -0.09105003625154495f, 0.0f,
    0.07958029955625534f,  0.16093020141124725f,  0.24611230194568634f,  0.33791524171829224f,
    0.44070982933044434f,  0.5626170039176941f,   0.7229568362236023f,   1.0f,
};
// what is added to it has no bits left for a fraction: rounds to nearest even, once with the product
#define TO_WHOLE 12582912.0f
static float pairs[256][2]; // what the two codes of a byte stand for
static float dynamic[256];  // the signed dynamic code of 8 bits

// Bound `i` of the `parts` equal parts of [0.1, 1], as torch.linspace computes it.
static float bound(int i, int parts) {
  float step = (1.0f - 0.1f) / (float)parts;
  return i < (parts + 1) / 2 ? fmaf(step, (float)i, 0.1f) : fmaf(-step, (float)(parts - i), 1.0f);
}

// The dynamic code: zero, one, and for each power of ten from 1e-6 to 1 twice as many steps as for the one before, each the
// middle of its part of [0.1, 1], with either sign. In f32 with the bits of bitsandbytes, whose files can so stay as they are.
__attribute__((constructor)) static void make_tables(void) {
  for (int byte = 0; byte < 256; byte++) {
    pairs[byte][0] = BOOK[byte >> 4];
    pairs[byte][1] = BOOK[byte & 15];
  }
  static const float powers[] = {1e-6f, 1e-5f, 1e-4f, 1e-3f, 1e-2f, 1e-1f, 1};
  for (int exponent = 0, at = 0; exponent < 7; exponent++)
    for (int step = 0, parts = 1 << exponent; step < parts; step++, at++) {
      float value = powers[exponent] * ((bound(step, parts) + bound(step + 1, parts)) / 2);
      dynamic[128 + at] = value;
      dynamic[126 - at] = -value;
    }
  dynamic[127] = 0;
  dynamic[255] = 1;
}

// The code of the value nearest to x in an ascending book.
static int nearest(const float *book, int count, float x) {
  int low = 0, high = count - 1; // the code is in [low, high]
  while (low < high) {
    int middle = (low + high) / 2;
    if (x > (float)(((double)book[middle] + book[middle + 1]) / 2)) low = middle + 1;
    else high = middle;
  }
  return low;
}

static inline float absolute_most(const float *x, int64_t n) {
  float most = 0;
  for (int64_t i = 0; i < n; i++) most = fmaxf(most, fabsf(x[i]));
  return most;
}

typedef struct {
  const packed_linear *to;
  const float *from;
  float *absmax;
  int64_t columns, size;
} pack_args;

static void pack_bf16(void *context, int64_t begin, int64_t end) {
  const pack_args *a = context;
  const uint32_t *from = (const uint32_t *)a->from;
  uint16_t *to = a->to->codes;
  for (int64_t i = begin; i < end; i++) {
    uint32_t bits = from[i];
    to[i] = (bits & 0x7fffffffu) > 0x7f800000u ? (bits >> 16) | 0x40 : (bits + 0x7fffu + ((bits >> 16) & 1)) >> 16;
  }
}

static void pack_int8(void *context, int64_t begin, int64_t end) {
  const pack_args *a = context;
  for (int64_t row = begin; row < end; row++) {
    const float *from = a->from + row * a->columns;
    int8_t *to = (int8_t *)a->to->codes + row * a->columns;
    float most = absolute_most(from, a->columns), inverse = most > 0 ? 127 / most : 0;
    a->to->scale[row] = most / 127;
    for (int64_t k = 0; k < a->columns; k++) to[k] = (int8_t)(fmaf(from[k], inverse, TO_WHOLE) - TO_WHOLE);
  }
}

static void pack_nf4(void *context, int64_t begin, int64_t end) {
  const pack_args *a = context;
  for (int64_t block = begin; block < end; block++) {
    int64_t first = block * NF4_BLOCK, count = a->size - first < NF4_BLOCK ? a->size - first : NF4_BLOCK;
    const float *from = a->from + first;
    uint8_t *to = (uint8_t *)a->to->codes + first / 2;
    float most = absolute_most(from, count), inverse = most > 0 ? 1 / most : 0;
    a->absmax[block] = most;
    for (int64_t i = 0; i < count; i += 2) {
      float next = i + 1 < count ? from[i + 1] : 0;
      to[i / 2] = (uint8_t)(nearest(BOOK, 16, from[i] * inverse) << 4 | nearest(BOOK, 16, next * inverse));
    }
  }
}

static void pack_nested(void *context, int64_t begin, int64_t end) {
  const pack_args *a = context;
  float mean = *a->to->mean;
  for (int64_t block = begin; block < end; block++) {
    int64_t first = block * NESTED_BLOCK, last = first + NESTED_BLOCK < a->size ? first + NESTED_BLOCK : a->size;
    float most = 0;
    for (int64_t i = first; i < last; i++) most = fmaxf(most, fabsf(a->absmax[i] - mean));
    float inverse = most > 0 ? 1 / most : 0;
    a->to->nested[block] = most;
    for (int64_t i = first; i < last; i++) a->to->absmax[i] = (uint8_t)nearest(dynamic, 256, (a->absmax[i] - mean) * inverse);
  }
}

// Quantises linear `linear` of a packed weight from f32 rows; `absmax` is room for one f32 for each 64 values, of nf4 alone.
void packed_quantise(const packed_weight *w, int linear, const float *from, float *absmax) {
  const packed_linear *to = &w->linears[linear];
  int64_t rows = to->end - to->row, size = rows * w->columns, blocks = (size + NF4_BLOCK - 1) / NF4_BLOCK;
  pack_args a = {to, from, absmax, w->columns, size};
  if (w->format == PACKED_BF16) parallel(size, 4096, pack_bf16, &a);
  if (w->format == PACKED_INT8) parallel(rows, 1, pack_int8, &a);
  if (w->format != PACKED_NF4) return;
  parallel(blocks, 16, pack_nf4, &a);
  double sum = 0;
  for (int64_t i = 0; i < blocks; i++) sum += absmax[i];
  *to->mean = (float)(sum / (double)blocks);
  a.size = blocks;
  parallel((blocks + NESTED_BLOCK - 1) / NESTED_BLOCK, 1, pack_nested, &a);
}

// What nf4's codes stand for, f32[16] and f32[256].
void packed_tables(float *book, float *nested) {
  for (int i = 0; i < 16; i++) book[i] = BOOK[i];
  for (int i = 0; i < 256; i++) nested[i] = dynamic[i];
}

static void expand_nf4(const packed_linear *from, int64_t first, int64_t count, float *to) {
  const uint8_t *codes = from->codes;
  for (int64_t at = first, end = first + count; at < end;) {
    int64_t block = at / NF4_BLOCK, stop = (block + 1) * NF4_BLOCK < end ? (block + 1) * NF4_BLOCK : end;
    float absmax = dynamic[from->absmax[block]] * from->nested[block / NESTED_BLOCK] + *from->mean;
    if (at % 2) *to++ = pairs[codes[at / 2]][1] * absmax, at++; // rows of an odd width begin and end within a byte
    for (; at + 1 < stop; at += 2, to += 2) {
      const float *two = pairs[codes[at / 2]];
      to[0] = two[0] * absmax;
      to[1] = two[1] * absmax;
    }
    if (at < stop) *to++ = pairs[codes[at / 2]][0] * absmax, at++;
  }
}

static const float E2M1[16] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6, -0.0f, -0.5f, -1, -1.5f, -2, -3, -4, -6};

static void expand_mxfp4(const packed_linear *from, int64_t first, int64_t count, float *to) {
  const uint8_t *codes = from->codes, *scales = (const uint8_t *)from->scale;
  for (int64_t at = first, end = first + count; at < end;) {
    int64_t block = at / MXFP4_BLOCK, stop = (block + 1) * MXFP4_BLOCK < end ? (block + 1) * MXFP4_BLOCK : end;
    float power = ldexpf(1, scales[block] - 127);
    for (; at < stop; at += 2, to += 2) {
      to[0] = E2M1[codes[at / 2] & 15] * power;
      to[1] = E2M1[codes[at / 2] >> 4] * power;
    }
  }
}

void packed_expand(const packed_weight *w, int64_t row, int64_t rows, int64_t column, int64_t columns, float *to, int64_t ld) {
  const packed_linear *from = w->linears;
  for (int64_t r = row; r < row + rows; r++, to += ld) {
    while (r >= from->end) from++;
    int64_t own = r - from->row, first = own * w->columns + column;
    if (w->format == PACKED_BF16) {
      const uint16_t *values = (const uint16_t *)from->codes + first;
      uint32_t *bits = (uint32_t *)to;
      for (int64_t i = 0; i < columns; i++) bits[i] = (uint32_t)values[i] << 16;
    } else if (w->format == PACKED_INT8) {
      const int8_t *codes = (const int8_t *)from->codes + first;
      float scale = from->scale[own];
      for (int64_t i = 0; i < columns; i++) to[i] = codes[i] * scale;
    } else if (w->format == PACKED_MXFP4) expand_mxfp4(from, first, columns, to);
    else expand_nf4(from, first, columns, to);
  }
}

typedef struct {
  const packed_weight *w;
  float *to;
} expand_args;

static void expand_range(void *context, int64_t begin, int64_t end) {
  const expand_args *a = context;
  packed_expand(a->w, begin, end - begin, 0, a->w->columns, a->to + begin * a->w->columns, a->w->columns);
}

// All of a packed weight as f32[rows, columns].
void packed_dequantise(const packed_weight *w, float *to) {
  parallel(w->linears[w->count - 1].end, 8, expand_range, &(expand_args){w, to});
}
