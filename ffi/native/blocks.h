// What reading (stored.c) and writing (encode.c) the blocks of GGUF have in common.
#pragma once
#include "native.h"
#include <string.h>
#ifdef __x86_64__
#include <immintrin.h>
#endif

// As src/files/stored.ts numbers them.
enum { F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K, Q6_K };
#define CHUNK 256 // values that are taken at a time: a whole number of blocks of every type

static inline float half(const uint8_t *at) {
#ifdef __x86_64__
  uint16_t bits;
  memcpy(&bits, at, 2);
  return _cvtsh_ss(bits);
#else
  __fp16 value;
  memcpy(&value, at, 2);
  return value;
#endif
}

// Rounded to the nearest, to even between two.
static inline uint16_t half_of(float value) {
#ifdef __x86_64__
  return (uint16_t)_cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT);
#else
  __fp16 rounded = value;
  uint16_t bits;
  memcpy(&bits, &rounded, 2);
  return bits;
#endif
}
