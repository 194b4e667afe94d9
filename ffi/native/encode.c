// Values as GGUF holds them: half floats, bf16, and the blocks of ggml's types, bit for bit as its quantize_row_*_ref makes
// them (ggml/src/ggml-quants.c, MIT). All is computed in f32, each operation rounded by itself, in ggml's order.
#include "blocks.h"
#include <float.h>
#include <math.h>

#define NOTHING 1e-15f // values below count as zeros

static inline void put_half(uint8_t *at, float value) {
  uint16_t bits = half_of(value);
  memcpy(at, &bits, 2);
}

static inline int nearest(float value) { return (int)__builtin_rintf(value); }
static inline int within(int value, int least, int most) { return value < least ? least : value > most ? most : value; }

static void f16(const float *x, uint8_t *to) {
  for (int i = 0; i < CHUNK; i++) put_half(to + 2 * i, x[i]);
}

static void bf16(const float *x, uint8_t *to) {
  for (int i = 0; i < CHUNK; i++) {
    uint32_t bits;
    memcpy(&bits, x + i, 4);
    uint16_t out = (bits & 0x7fffffffu) > 0x7f800000u ? (bits >> 16) | 0x40 : (bits + 0x7fffu + ((bits >> 16) & 1)) >> 16;
    memcpy(to + 2 * i, &out, 2);
  }
}

static void q8_0(const float *x, uint8_t *to) {
  float most = 0;
  for (int i = 0; i < 32; i++) most = fabsf(x[i]) > most ? fabsf(x[i]) : most;
  float d = most / 127, inverse = d ? 1.0f / d : 0.0f;
  put_half(to, d);
  for (int i = 0; i < 32; i++) to[2 + i] = (uint8_t)(int8_t)roundf(x[i] * inverse);
}

// 32 codes of 5 bits: four in the halves of 16 bytes, the fifth of all in a word before them.
static void put5(const uint8_t *codes, uint8_t *to) {
  uint32_t high = 0;
  for (int i = 0; i < 16; i++) {
    to[4 + i] = (codes[i] & 15) | (codes[i + 16] & 15) << 4;
    high |= (uint32_t)(codes[i] >> 4) << i | (uint32_t)(codes[i + 16] >> 4) << (i + 16);
  }
  memcpy(to, &high, 4);
}

static void q5_0(const float *x, uint8_t *to) {
  float most = 0, far = 0;
  for (int i = 0; i < 32; i++)
    if (fabsf(x[i]) > most) {
      most = fabsf(x[i]);
      far = x[i];
    }
  float d = far / -16, inverse = d ? 1.0f / d : 0.0f;
  uint8_t codes[32];
  put_half(to, d);
  for (int i = 0; i < 32; i++) {
    int code = (int8_t)(x[i] * inverse + 16.5f);
    codes[i] = code > 31 ? 31 : code;
  }
  put5(codes, to + 2);
}

static void q5_1(const float *x, uint8_t *to) {
  float least = FLT_MAX, most = -FLT_MAX;
  for (int i = 0; i < 32; i++) {
    if (x[i] < least) least = x[i];
    if (x[i] > most) most = x[i];
  }
  float d = (most - least) / 31, inverse = d ? 1.0f / d : 0.0f;
  uint8_t codes[32];
  put_half(to, d);
  put_half(to + 2, least);
  for (int i = 0; i < 32; i++) codes[i] = (uint8_t)((x[i] - least) * inverse + 0.5f);
  put5(codes, to + 4);
}

// The scale, and the least value, at most 0 and returned with its sign turned, with which 32 codes from 0 to `most` are closest
// to x by weighted squares: that of the range, or a better one of steps + 1 scales from `first` on.
static float fit(const float *x, int most, float first, int steps, uint8_t *codes, float *turned) {
  float weights[32], squares = 0, low = x[0], high = x[0];
  for (int i = 0; i < 32; i++) squares += x[i] * x[i];
  float mean = sqrtf(squares / 32);
  for (int i = 0; i < 32; i++) weights[i] = mean + fabsf(x[i]);
  float sum_w = weights[0], sum_x = weights[0] * x[0];
  for (int i = 1; i < 32; i++) {
    if (x[i] < low) low = x[i];
    if (x[i] > high) high = x[i];
    sum_w += weights[i];
    sum_x += weights[i] * x[i];
  }
  if (low > 0) low = 0;
  if (low == high) {
    memset(codes, 0, 32);
    *turned = -low;
    return 0;
  }
  float inverse = (float)most / (high - low), scale = 1 / inverse, best = 0, least = low;
  for (int i = 0; i < 32; i++) {
    codes[i] = (uint8_t)within(nearest(inverse * (x[i] - low)), 0, most);
    float off = scale * codes[i] + low - x[i];
    best += weights[i] * (off * off);
  }
  for (int step = 0; step <= steps; step++) {
    inverse = (first + 0.1f * (float)step + (float)most) / (high - least);
    uint8_t tried[32];
    float sum_l = 0, sum_l2 = 0, sum_xl = 0;
    for (int i = 0; i < 32; i++) {
      int code = within(nearest(inverse * (x[i] - least)), 0, most);
      tried[i] = (uint8_t)code;
      sum_l += weights[i] * (float)code;
      sum_l2 += weights[i] * (float)code * (float)code;
      sum_xl += weights[i] * (float)code * x[i];
    }
    float determinant = sum_w * sum_l2 - sum_l * sum_l;
    if (!(determinant > 0)) continue;
    float own_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant, own = (sum_l2 * sum_x - sum_l * sum_xl) / determinant;
    if (own > 0) {
      own = 0;
      own_scale = sum_xl / sum_l2;
    }
    float error = 0;
    for (int i = 0; i < 32; i++) {
      float off = own_scale * tried[i] + own - x[i];
      error += weights[i] * (off * off);
    }
    if (error < best) {
      memcpy(codes, tried, 32);
      best = error;
      scale = own_scale;
      least = own;
    }
  }
  *turned = -least;
  return scale;
}

// Codes of 256 values up to `most`, with half floats for scales and least values, and 6 bits of both for each 32 values.
static void k_codes(const float *x, int most, float first, int steps, uint8_t *codes, uint8_t *to) {
  float scales[8], leasts[8], top_scale = 0, top_least = 0;
  for (int part = 0; part < 8; part++) {
    scales[part] = fit(x + 32 * part, most, first, steps, codes + 32 * part, leasts + part);
    if (scales[part] > top_scale) top_scale = scales[part];
    if (leasts[part] > top_least) top_least = leasts[part];
  }
  float by_scale = top_scale > 0 ? 63.0f / top_scale : 0, by_least = top_least > 0 ? 63.0f / top_least : 0;
  put_half(to, top_scale / 63);
  put_half(to + 2, top_least / 63);
  float d = half(to), dmin = half(to + 2);
  uint8_t *packed = to + 4;
  for (int part = 0; part < 8; part++) {
    uint8_t s = (uint8_t)nearest(by_scale * scales[part]), m = (uint8_t)nearest(by_least * leasts[part]);
    s = s > 63 ? 63 : s;
    m = m > 63 ? 63 : m;
    if (part < 4) {
      packed[part] = s;
      packed[part + 4] = m;
    } else {
      packed[part + 4] = (s & 15) | (m & 15) << 4;
      packed[part - 4] |= s >> 4 << 6;
      packed[part] |= m >> 4 << 6;
    }
    float scale = d * (float)s, least = dmin * (float)m;
    if (scale == 0) continue;
    for (int i = 32 * part; i < 32 * part + 32; i++) codes[i] = (uint8_t)within(nearest((x[i] + least) / scale), 0, most);
  }
}

static void q4_k(const float *x, uint8_t *to) {
  uint8_t codes[256];
  k_codes(x, 15, -1.0f, 20, codes, to);
  for (int i = 0; i < 128; i++) to[16 + i] = codes[i / 32 * 64 + i % 32] | codes[i / 32 * 64 + i % 32 + 32] << 4;
}

static void q5_k(const float *x, uint8_t *to) {
  uint8_t codes[256];
  k_codes(x, 31, -0.5f, 15, codes, to);
  memset(to + 16, 0, 32);
  for (int i = 0; i < 256; i++) to[16 + i % 32] |= codes[i] >> 4 << i / 32;
  for (int i = 0; i < 128; i++)
    to[48 + i] = (codes[i / 32 * 64 + i % 32] & 15) | (codes[i / 32 * 64 + i % 32 + 32] & 15) << 4;
}

// The sums of x and of the squares of its codes, by squares of x, at a scale.
static void sums16(const float *x, float inverse, float *sum_xl, float *sum_l2) {
  *sum_xl = *sum_l2 = 0;
  for (int i = 0; i < 16; i++) {
    int code = within(nearest(inverse * x[i]), -32, 31);
    float weight = x[i] * x[i];
    *sum_xl += weight * x[i] * (float)code;
    *sum_l2 += weight * (float)code * (float)code;
  }
}

// The scale with which 16 codes from -32 to 31 are closest to x; the codes are returned plus 32.
static float fit16(const float *x, uint8_t *codes) {
  float most = 0, far = 0;
  for (int i = 0; i < 16; i++)
    if (fabsf(x[i]) > most) {
      most = fabsf(x[i]);
      far = x[i];
    }
  memset(codes, 0, 16);
  if (most < NOTHING) return 0;
  float inverse = -32 / far, sum_xl, sum_l2;
  sums16(x, inverse, &sum_xl, &sum_l2);
  float scale = sum_l2 ? sum_xl / sum_l2 : 0, best = scale * sum_xl, chosen = inverse;
  for (int step = -9; step <= 9; step++) {
    if (step == 0) continue;
    inverse = -(32 + 0.1f * (float)step) / far;
    sums16(x, inverse, &sum_xl, &sum_l2);
    if (!(sum_l2 > 0 && sum_xl * sum_xl > best * sum_l2)) continue;
    chosen = inverse;
    scale = sum_xl / sum_l2;
    best = scale * sum_xl;
  }
  for (int i = 0; i < 16; i++) codes[i] = (uint8_t)(32 + within(nearest(chosen * x[i]), -32, 31));
  return scale;
}

static void q6_k(const float *x, uint8_t *to) {
  uint8_t codes[256];
  float scales[16], most = 0, far = 0;
  for (int part = 0; part < 16; part++) {
    scales[part] = fit16(x + 16 * part, codes + 16 * part);
    if (fabsf(scales[part]) > most) {
      most = fabsf(scales[part]);
      far = scales[part];
    }
  }
  memset(to, 0, 210);
  if (most < NOTHING) return;
  float inverse = -128.0f / far;
  put_half(to + 208, 1 / inverse);
  float d = half(to + 208);
  for (int part = 0; part < 16; part++) {
    int8_t own = (int8_t)within(nearest(inverse * scales[part]), -128, 127);
    to[192 + part] = (uint8_t)own;
    float scale = d * (float)own;
    if (scale == 0) continue;
    for (int i = 16 * part; i < 16 * part + 16; i++) codes[i] = (uint8_t)(32 + within(nearest(x[i] / scale), -32, 31));
  }
  for (int i = 0; i < 256; i++) {
    int quarter = i % 128 / 32, lane = i % 32;
    to[i / 128 * 64 + quarter % 2 * 32 + lane] |= (codes[i] & 15) << quarter / 2 * 4;
    to[128 + i / 128 * 32 + lane] |= codes[i] >> 4 << quarter * 2;
  }
}

static const struct {
  int values, bytes;
  void (*encode)(const float *from, uint8_t *to);
} TYPES[] = {
    [F16] = {CHUNK, 2 * CHUNK, f16}, [BF16] = {CHUNK, 2 * CHUNK, bf16}, [Q8_0] = {32, 34, q8_0}, [Q5_0] = {32, 22, q5_0},
    [Q5_1] = {32, 24, q5_1},         [Q4_K] = {256, 144, q4_k},         [Q5_K] = {256, 176, q5_k}, [Q6_K] = {256, 210, q6_k},
};

typedef struct {
  int type;
  const float *from;
  uint8_t *to;
} encode_args;

static void encode_range(void *context, int64_t begin, int64_t end) {
  const encode_args *a = context;
  int values = TYPES[a->type].values, bytes = TYPES[a->type].bytes;
  for (int64_t at = begin; at < end; at += values) {
    if (at + values <= end) {
      TYPES[a->type].encode(a->from + at, a->to + at / values * bytes);
      continue;
    }
    float some[CHUNK] = {0}; // of types with 2 bytes a value alone
    uint8_t out[2 * CHUNK];
    memcpy(some, a->from + at, (size_t)(end - at) * 4);
    TYPES[a->type].encode(some, out);
    memcpy(a->to + at / values * bytes, out, (size_t)(end - at) * 2);
  }
}

// `count` values, whole blocks of the type.
void stored_encode(int type, const float *from, int64_t count, void *to) {
  if (type == F32) memcpy(to, from, (size_t)count * 4);
  else parallel(count, CHUNK, encode_range, &(encode_args){type, from, to});
}
