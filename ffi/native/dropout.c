// Dropout by a counter-based generator: base/rng.ts, dropoutRowKey and dropoutBits, over rows of one adapter.
#include "native.h"

typedef struct {
  const float *x;
  float *y;
  const int32_t *row_number;
  uint32_t seed, step, module, threshold;
  float keep_scale;
  int width, add;
} dropout_args;

static void dropout_range(void *context, int64_t begin, int64_t end) {
  const dropout_args *a = context;
  for (int64_t m = begin; m < end; m++) {
    uint32_t k0 = mix(mix(mix(mix(a->seed) ^ a->step) ^ a->module) ^ (uint32_t)a->row_number[m]);
    uint32_t k1 = mix(k0 ^ 0x9e3779b9u);
    const float *x = a->x + m * a->width;
    float *y = a->y + m * a->width;
    for (int k = 0; k < a->width; k++) {
      uint32_t bits = (uint32_t)k + k0;
      bits = (bits ^ (bits >> 16)) * 0x7feb352du ^ k1;
      bits = (bits ^ (bits >> 15)) * 0x846ca68bu;
      bits ^= bits >> 16;
      float kept = bits >= a->threshold ? x[k] * a->keep_scale : 0.0f;
      y[k] = a->add ? y[k] + kept : kept;
    }
  }
}

// y = dropout(x), or y += dropout(x) with `add`.
void dropout(const float *x, float *y, const int32_t *row_number, int rows, int width, uint32_t seed, uint32_t step,
             uint32_t module, uint32_t threshold, float keep_scale, int add) {
  dropout_args a = {x, y, row_number, seed, step, module, threshold, keep_scale, width, add};
  parallel(rows, 8, dropout_range, &a);
}
