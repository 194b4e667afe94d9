// The cpu device's kernels in plain C: what src/ops calls on CPUs, row by row, f32. Matrix products are OpenBLAS's.
//
// Every function is deterministic: rows are independent, sums run in a fixed order whatever the number of threads.
// Formulas and shapes: src/ops, a file of the same name each. Integers are 32-bit, as in the tables; products of sizes are
// computed in 64 bits.
#pragma once
#include <stddef.h>
#include <stdint.h>
#ifdef __x86_64__
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define LANES 16 // accumulators of a sum: wide enough for AVX-512, and the fixed order of every reduction

// Compiled for AVX-512, too, which is taken where the processor has it: of functions that go through rows element by element.
#if defined(__x86_64__) && !defined(__clang__)
#define WIDE __attribute__((target_clones("avx512f", "default")))
#else
#define WIDE
#endif

// Calls fn(context, begin, end) over [0, n) on all threads; returns when all is done. Pieces are whole multiples of `grain`.
typedef void (*range_fn)(void *context, int64_t begin, int64_t end);
void parallel(int64_t n, int64_t grain, range_fn fn, void *context);

// Which of the pool's threads this is: 0 is the caller of parallel().
int thread_number(void);

// Threads that share the work, the caller among them.
int pool_threads(void);

int machine_cores(void);

typedef void (*sgemm_fn)(int order, int trans_a, int trans_b, int m, int n, int k, float alpha, const float *a, int lda,
                         const float *b, int ldb, float beta, float *c, int ldc);

// c[m, n] = alpha op(a) op(b) + beta c in the calling thread (product.c).
void product_here(sgemm_fn sgemm, int trans_a, int trans_b, int m, int n, int k, float alpha, const float *a, int lda,
                  const float *b, int ldb, float beta, float *c, int ldc);

// a b + c, rounded once: one instruction. What is not written so is rounded after the product, too. A compiler
// may not choose: it could choose otherwise in another loop over the same rows (scripts/setup).
static inline float fused(float a, float b, float c) { return __builtin_fmaf(a, b, c); }

static inline float lanes_sum(const float *acc) {
  float half[8], quarter[4];
  for (int i = 0; i < 8; i++) half[i] = acc[i] + acc[i + 8];
  for (int i = 0; i < 4; i++) quarter[i] = half[i] + half[i + 4];
  return (quarter[0] + quarter[2]) + (quarter[1] + quarter[3]);
}

// Each lane's terms are fused to its sum. GCC vectorises no such sums, so they are written in vectors.
static inline float dot(const float *a, const float *b, int n) {
  float acc[LANES] = {0};
  int i = 0;
#ifdef __x86_64__
  __m256 low = _mm256_setzero_ps(), high = low;
  for (; i + LANES <= n; i += LANES) {
    low = _mm256_fmadd_ps(_mm256_loadu_ps(a + i), _mm256_loadu_ps(b + i), low);
    high = _mm256_fmadd_ps(_mm256_loadu_ps(a + i + 8), _mm256_loadu_ps(b + i + 8), high);
  }
  if (i == n) { // lanes_sum, in registers
    __m256 half = _mm256_add_ps(low, high);
    __m128 quarter = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    __m128 two = _mm_add_ps(quarter, _mm_movehl_ps(quarter, quarter));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
  }
  _mm256_storeu_ps(acc, low);
  _mm256_storeu_ps(acc + 8, high);
#elif defined(__aarch64__)
  float32x4_t four[4];
  for (int k = 0; k < 4; k++) four[k] = vdupq_n_f32(0);
  for (; i + LANES <= n; i += LANES)
    for (int k = 0; k < 4; k++) four[k] = vfmaq_f32(four[k], vld1q_f32(a + i + 4 * k), vld1q_f32(b + i + 4 * k));
  for (int k = 0; k < 4; k++) vst1q_f32(acc + 4 * k, four[k]);
#endif
  for (; i + LANES <= n; i += LANES)
    for (int l = 0; l < LANES; l++) acc[l] = fused(a[i + l], b[i + l], acc[l]);
  for (int l = 0; i < n; i++, l++) acc[l] = fused(a[i], b[i], acc[l]);
  return lanes_sum(acc);
}

// e^x to about 2 ulp, in a form that compilers vectorise (Cody and Waite reduction, degree 6). NaN stays NaN.
static inline float fast_exp(float x) {
  x = x > 88.0f ? 88.0f : x;
  x = x < -87.0f ? -87.0f : x;
  float n = __builtin_rintf(x * 1.44269504f);
  float r = fused(n, 2.12194440e-4f, fused(-n, 0.693359375f, x));
  float p = 1.9875691500e-4f;
  p = fused(p, r, 1.3981999507e-3f);
  p = fused(p, r, 8.3334519073e-3f);
  p = fused(p, r, 4.1665795894e-2f);
  p = fused(p, r, 1.6666665459e-1f);
  p = fused(p, r, 5.0000001201e-1f);
  p = fused(p * r, r, r) + 1.0f;
  union { int32_t i; float f; } two_n;
  two_n.i = ((int32_t)n + 127) << 23;
  return p * two_n.f;
}

// The 32-bit finaliser of base/rng.ts.
static inline uint32_t mix(uint32_t x) {
  x = (x ^ (x >> 16)) * 0x7feb352du;
  x = (x ^ (x >> 15)) * 0x846ca68bu;
  return x ^ (x >> 16);
}

// tanh x to about 2 ulp, in a form that compilers vectorise (the polynomial of Cephes about 0).
static inline float fast_tanh(float x) {
  float z = x * x;
  float p = -5.70498872745e-3f;
  p = fused(p, z, 2.06390887954e-2f);
  p = fused(p, z, -5.37397155531e-2f);
  p = fused(p, z, 1.33314422036e-1f);
  p = fused(p, z, -3.33332819422e-1f);
  float far = 1.0f - 2.0f / (fast_exp(2.0f * x) + 1.0f);
  return z < 0.390625f ? fused(p * z, x, x) : far;
}

static inline float sigmoid(float x) { return 1.0f / (1.0f + fast_exp(-x)); }
