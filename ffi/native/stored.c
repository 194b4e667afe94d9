// What the files of base models hold, as f32 or bf16: half floats, the blocks of GGUF, FP8 with scales, 4-bit codes of
// bitsandbytes. All that a format says is computed in f32, each operation rounded by itself as its own library rounds it, and
// bf16 is the nearest to that.
#include "blocks.h"
#include <math.h>

static inline uint32_t word(const uint8_t *at) {
  uint32_t bits;
  memcpy(&bits, at, 4);
  return bits;
}

// One block of 32 values each: scale d, and a least value m or none; the first 16 values lie in the low halves of the bytes.
static void q8_0(const uint8_t *from, float *to) {
  float d = half(from);
  for (int i = 0; i < 32; i++) to[i] = d * (float)(int8_t)from[2 + i];
}

static void q4_0(const uint8_t *from, float *to) {
  float d = half(from);
  for (int i = 0; i < 16; i++) {
    to[i] = d * (float)((from[2 + i] & 15) - 8);
    to[i + 16] = d * (float)((from[2 + i] >> 4) - 8);
  }
}

static void q4_1(const uint8_t *from, float *to) {
  float d = half(from), m = half(from + 2);
  for (int i = 0; i < 16; i++) {
    to[i] = d * (float)(from[4 + i] & 15) + m;
    to[i + 16] = d * (float)(from[4 + i] >> 4) + m;
  }
}

// The fifth bits of all 32 values are in a word of their own.
static void q5_0(const uint8_t *from, float *to) {
  float d = half(from);
  uint32_t high = word(from + 2);
  for (int i = 0; i < 16; i++) {
    to[i] = d * (float)(((from[6 + i] & 15) | ((high >> i & 1) << 4)) - 16.0f);
    to[i + 16] = d * (float)(((from[6 + i] >> 4) | ((high >> (i + 16) & 1) << 4)) - 16.0f);
  }
}

static void q5_1(const uint8_t *from, float *to) {
  float d = half(from), m = half(from + 2);
  uint32_t high = word(from + 4);
  for (int i = 0; i < 16; i++) {
    to[i] = d * (float)((from[8 + i] & 15) | ((high >> i & 1) << 4)) + m;
    to[i + 16] = d * (float)((from[8 + i] >> 4) | ((high >> (i + 16) & 1) << 4)) + m;
  }
}

// Scale and least value, of 6 bits each, of the 32 values of part `part` of a block of 256.
static void scale_and_least(const uint8_t *packed, int part, float d, float dmin, float *scale, float *least) {
  int s, m;
  if (part < 4) {
    s = packed[part] & 63;
    m = packed[part + 4] & 63;
  } else {
    s = (packed[part + 4] & 15) | (packed[part - 4] >> 6 << 4);
    m = (packed[part + 4] >> 4) | (packed[part] >> 6 << 4);
  }
  *scale = d * (float)s;
  *least = dmin * (float)m;
}

static void q4_k(const uint8_t *from, float *to) {
  float d = half(from), dmin = half(from + 2), scale, least;
  const uint8_t *codes = from + 16;
  for (int part = 0; part < 8; part++, to += 32) {
    scale_and_least(from + 4, part, d, dmin, &scale, &least);
    int shift = part % 2 * 4;
    for (int i = 0; i < 32; i++) to[i] = scale * (float)(codes[part / 2 * 32 + i] >> shift & 15) - least;
  }
}

static void q5_k(const uint8_t *from, float *to) {
  float d = half(from), dmin = half(from + 2), scale, least;
  const uint8_t *high = from + 16, *codes = from + 48;
  for (int part = 0; part < 8; part++, to += 32) {
    scale_and_least(from + 4, part, d, dmin, &scale, &least);
    int shift = part % 2 * 4;
    for (int i = 0; i < 32; i++)
      to[i] = scale * (float)((codes[part / 2 * 32 + i] >> shift & 15) | ((high[i] >> part & 1) << 4)) - least;
  }
}

// Two halves of 128 values, each of four parts of 32; a scale for every 16 values.
static void q6_k(const uint8_t *from, float *to) {
  float d = half(from + 208);
  for (int part = 0; part < 8; part++, to += 32) {
    const uint8_t *low = from + part / 4 * 64 + part % 2 * 32, *high = from + 128 + part / 4 * 32;
    const int8_t *scales = (const int8_t *)from + 192 + part * 2;
    int shift = part % 4 / 2 * 4, place = part % 4 * 2;
    for (int half = 0; half < 32; half += 16) {
      float scale = d * (float)scales[half / 16];
      for (int i = half; i < half + 16; i++)
        to[i] = scale * (float)(((low[i] >> shift & 15) | ((high[i] >> place & 3) << 4)) - 32);
    }
  }
}

static void plain(int type, const uint8_t *from, int64_t count, float *to) {
  if (type == F32) memcpy(to, from, (size_t)count * 4);
  else if (type == F16)
    for (int64_t i = 0; i < count; i++) to[i] = half(from + 2 * i);
  else
    for (int64_t i = 0; i < count; i++) {
      uint32_t bits = (uint32_t)(from[2 * i] | from[2 * i + 1] << 8) << 16;
      memcpy(to + i, &bits, 4);
    }
}

static const struct {
  int values, bytes;
  void (*expand)(const uint8_t *from, float *to);
} TYPES[] = {
    [F32] = {1, 4, NULL},      [F16] = {1, 2, NULL},      [BF16] = {1, 2, NULL},     [Q8_0] = {32, 34, q8_0},
    [Q4_0] = {32, 18, q4_0},   [Q4_1] = {32, 20, q4_1},   [Q5_0] = {32, 22, q5_0},   [Q5_1] = {32, 24, q5_1},
    [Q4_K] = {256, 144, q4_k}, [Q5_K] = {256, 176, q5_k}, [Q6_K] = {256, 210, q6_k},
};

// To nearest even; NaN stays NaN.
static void store(const float *from, int64_t count, int to_bf16, void *to, int64_t at) {
  if (!to_bf16) {
    memcpy((float *)to + at, from, (size_t)count * 4);
    return;
  }
  uint16_t *out = (uint16_t *)to + at;
  for (int64_t i = 0; i < count; i++) {
    uint32_t bits;
    memcpy(&bits, from + i, 4);
    out[i] = (bits & 0x7fffffffu) > 0x7f800000u ? (bits >> 16) | 0x40 : (bits + 0x7fffu + ((bits >> 16) & 1)) >> 16;
  }
}

typedef struct {
  int type, to_bf16;
  const uint8_t *from;
  int64_t count;
  void *to;
} values_args;

static void values_range(void *context, int64_t begin, int64_t end) {
  const values_args *a = context;
  int values = TYPES[a->type].values, bytes = TYPES[a->type].bytes;
  float some[CHUNK];
  for (int64_t at = begin; at < end; at += CHUNK) {
    int64_t left = end - at < CHUNK ? end - at : CHUNK;
    if (values == 1) plain(a->type, a->from + at * bytes, left, some);
    else
      for (int64_t done = 0; done < left; done += values)
        TYPES[a->type].expand(a->from + (at + done) / values * bytes, some + done);
    store(some, left, a->to_bf16, a->to, at);
  }
}

// `count` values of a type, from whole blocks.
void stored_values(int type, const void *from, int64_t count, int to_bf16, void *to) {
  parallel(count, CHUNK, values_range, &(values_args){type, to_bf16, from, count, to});
}

static float e4m3[256];

// Of sign, 4 bits of exponent with bias 7 and 3 of fraction; no infinities, all ones is NaN.
__attribute__((constructor)) static void make_e4m3(void) {
  for (int code = 0; code < 256; code++) {
    int exponent = code >> 3 & 15, fraction = code & 7;
    float value = exponent ? ldexpf((float)(8 + fraction), exponent - 10) : ldexpf((float)fraction, -9);
    if ((code & 127) == 127) value = NAN;
    e4m3[code] = code & 128 ? -value : value;
  }
}

typedef struct {
  const uint8_t *codes;
  const float *scales;
  int64_t row, columns, block_rows, block_columns;
  int to_bf16;
  void *to;
} fp8_args;

static void fp8_range(void *context, int64_t begin, int64_t end) {
  const fp8_args *a = context;
  int64_t across = (a->columns + a->block_columns - 1) / a->block_columns;
  float some[CHUNK];
  for (int64_t row = begin; row < end; row++) {
    const float *scales = a->scales + (a->row + row) / a->block_rows * across;
    const uint8_t *codes = a->codes + row * a->columns;
    for (int64_t column = 0; column < a->columns;) {
      int64_t block = column / a->block_columns, stop = (block + 1) * a->block_columns;
      if (stop > a->columns) stop = a->columns;
      if (stop > column + CHUNK) stop = column + CHUNK;
      for (int64_t i = column; i < stop; i++) some[i - column] = e4m3[codes[i]] * scales[block];
      store(some, stop - column, a->to_bf16, a->to, row * a->columns + column);
      column = stop;
    }
  }
}

// Rows of e4m3 codes, the first of which is row `row` of the weight, times the scale of the block of the weight that each
// value lies in.
void stored_fp8(const uint8_t *codes, const float *scales, int64_t row, int64_t rows, int64_t columns, int64_t block_rows,
                int64_t block_columns, int to_bf16, void *to) {
  fp8_args a = {codes, scales, row, columns, block_rows, block_columns, to_bf16, to};
  parallel(rows, 1, fp8_range, &a);
}

typedef struct {
  const uint8_t *codes;
  const float *absmax, *book;
  int64_t first, block;
  int to_bf16;
  void *to;
} codes4_args;

static void codes4_range(void *context, int64_t begin, int64_t end) {
  const codes4_args *a = context;
  float some[CHUNK];
  for (int64_t at = begin; at < end;) {
    int64_t block = (a->first + at) / a->block, stop = (block + 1) * a->block - a->first;
    if (stop > end) stop = end;
    if (stop > at + CHUNK) stop = at + CHUNK;
    float absmax = a->absmax[block];
    for (int64_t i = at; i < stop; i++) {
      uint8_t two = a->codes[i / 2];
      some[i - at] = a->book[i % 2 ? two & 15 : two >> 4] * absmax;
    }
    store(some, stop - at, a->to_bf16, a->to, at);
    at = stop;
  }
}

// `count` values by 4-bit codes, two to a byte, the first in the high half. They are those from `first`, an even number, of a
// weight on: book[code] times the scale of its block of `block` values.
void stored_codes4(const uint8_t *codes, const float *absmax, const float *book, int64_t first, int64_t count, int64_t block,
                   int to_bf16, void *to) {
  parallel(count, CHUNK, codes4_range, &(codes4_args){codes, absmax, book, first, block, to_bf16, to});
}
