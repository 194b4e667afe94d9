// Random numbers by index: the same bits as kernels/triton/fill.py makes.
#include "native.h"

typedef struct {
  float *out, scale;
  uint32_t seed;
} fill_args;

static void fill_range(void *context, int64_t begin, int64_t end) {
  const fill_args *a = context;
  for (int64_t i = begin; i < end; i++) {
    uint32_t bits = mix(mix(mix(a->seed) ^ (uint32_t)(i >> 32)) ^ (uint32_t)i);
    a->out[i] = ((float)(int32_t)(bits >> 8) * 0x1p-23f - 1.0f) * a->scale; // exact, but for the product with scale
  }
}

// out[i] uniform in [-scale, scale).
void random_fill(float *out, int64_t size, uint32_t seed, float scale) {
  parallel(size, 4096, fill_range, &(fill_args){out, scale, seed});
}
