// What products by AVX-512 share: how their functions are compiled, and words turned in registers.
#pragma once

#ifdef __x86_64__
#include <immintrin.h>

#define AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl")))
// Of loops over arrays that are to lie in registers.
#ifdef __clang__
#define UNROLLED _Pragma("unroll")
#else
#define UNROLLED _Pragma("GCC unroll 16")
#endif
#define ALWAYS static inline __attribute__((always_inline)) AVX512

// Transposes 16 by 16 values in registers.
ALWAYS void transpose(__m512 r[16]) {
  __m512 t[16];
  UNROLLED for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
  }
  UNROLLED for (int i = 0; i < 16; i += 4)
    UNROLLED for (int j = 0; j < 2; j++) {
      __m512d low = _mm512_castps_pd(t[i + j]), high = _mm512_castps_pd(t[i + 2 + j]);
      r[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, high));
      r[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, high));
    }
  UNROLLED for (int i = 0; i < 4; i++) { // r[4 g + i]: of rows 4 g to 4 g + 3, columns i, i + 4, i + 8, i + 12
    __m512 a = _mm512_shuffle_f32x4(r[i], r[4 + i], 0x88), b = _mm512_shuffle_f32x4(r[8 + i], r[12 + i], 0x88);
    __m512 c = _mm512_shuffle_f32x4(r[i], r[4 + i], 0xdd), d = _mm512_shuffle_f32x4(r[8 + i], r[12 + i], 0xdd);
    t[i] = _mm512_shuffle_f32x4(a, b, 0x88);
    t[8 + i] = _mm512_shuffle_f32x4(a, b, 0xdd);
    t[4 + i] = _mm512_shuffle_f32x4(c, d, 0x88);
    t[12 + i] = _mm512_shuffle_f32x4(c, d, 0xdd);
  }
  UNROLLED for (int i = 0; i < 16; i++) r[i] = t[i];
}
#endif
