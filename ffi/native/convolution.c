// Causal depthwise convolution over the rows of a sequence, then SiLU: a channel by itself.
#include "native.h"
#include <string.h>

#define BLOCK 64 // channels of a piece of work

typedef struct {
  const float *dy, *x, *weight, *bias; // bias may be NULL
  float *y, *window;
  const int32_t *bounds, *places;
  int64_t stride; // from one row of x to the next
  int rows, channels, taps, capacity;
} conv_args;

// The sum over the taps of one channel, and its bias; `first`: the first row of the row's sequence.
static inline float taps_sum(const conv_args *a, int64_t m, int64_t first, int c) {
  float sum = a->bias ? a->bias[c] : 0;
  for (int t = 0; t < a->taps; t++) {
    int64_t from = m - a->taps + 1 + t;
    if (from >= first) sum = fused(a->weight[c * a->taps + t], a->x[from * a->stride + c], sum);
  }
  return sum;
}

static void forward_range(void *context, int64_t begin, int64_t end) {
  const conv_args *a = context;
  for (int64_t m = begin; m < end; m++) {
    float *y = a->y + m * a->channels;
    int32_t first = a->bounds[2 * m];
    if (a->bounds[2 * m + 1] <= first) {
      memset(y, 0, sizeof(float) * (size_t)a->channels);
      continue;
    }
    for (int c = 0; c < a->channels; c++) {
      float sum = taps_sum(a, m, first, c);
      y[c] = sum * sigmoid(sum);
    }
  }
}
void convolution_forward(const float *x, int64_t stride, const float *weight, const float *bias, const int32_t *bounds, float *y,
                         int rows, int channels, int taps) {
  conv_args a = {NULL, x, weight, bias, y, NULL, bounds, NULL, stride, rows, channels, taps, 0};
  parallel(rows, 16, forward_range, &a);
}

// From the last row to the first: `after` has the gradients of the sums of the rows after it, the next one's first.
static void backward_range(void *context, int64_t begin, int64_t end) {
  const conv_args *a = context;
  int taps = a->taps;
  float after[8] = {0};
  for (int64_t c = begin; c < end; c++) {
    memset(after, 0, sizeof(after));
    for (int64_t m = a->rows - 1; m >= 0; m--) {
      float *dx = a->y + m * a->stride + c;
      int32_t first = a->bounds[2 * m], last = a->bounds[2 * m + 1];
      if (last <= first || m == last - 1) memset(after, 0, sizeof(after));
      *dx = 0;
      if (last <= first) continue;
      float sum = taps_sum(a, m, first, (int)c), s = sigmoid(sum);
      memmove(after + 1, after, sizeof(float) * (size_t)(taps - 1));
      after[0] = a->dy[m * a->channels + c] * s * fused(sum, 1.0f - s, 1.0f);
      for (int t = 0; t < taps; t++) *dx = fused(a->weight[c * taps + taps - 1 - t], after[t], *dx);
    }
  }
}
void convolution_backward(const float *dy, const float *x, int64_t stride, const float *weight, const float *bias,
                          const int32_t *bounds, float *dx, int rows, int channels, int taps) {
  conv_args a = {dy, x, weight, bias, dx, NULL, bounds, NULL, stride, rows, channels, taps, 0};
  parallel(channels, BLOCK, backward_range, &a);
}

static void keep_range(void *context, int64_t begin, int64_t end) {
  const conv_args *a = context;
  int kept = a->taps - 1;
  for (int64_t m = begin; m < end; m++) {
    int32_t first = a->bounds[2 * m];
    if (a->bounds[2 * m + 1] != m + 1 || first > m || a->places[m] < 0) continue;
    float *window = a->window + (int64_t)(a->places[m] / a->capacity) * kept * a->channels;
    for (int t = 0; t < kept; t++) {
      int64_t from = m - kept + 1 + t;
      float *to = window + (int64_t)t * a->channels;
      if (from < first) memset(to, 0, sizeof(float) * (size_t)a->channels);
      else memcpy(to, a->x + from * a->stride, sizeof(float) * (size_t)a->channels);
    }
  }
}
void convolution_keep(const float *x, int64_t stride, const int32_t *bounds, const int32_t *places, float *window, int rows,
                      int channels, int taps, int capacity) {
  conv_args a = {NULL, x, NULL, NULL, NULL, window, bounds, places, stride, rows, channels, taps, capacity};
  parallel(rows, 16, keep_range, &a);
}

static void decode_range(void *context, int64_t begin, int64_t end) {
  const conv_args *a = context;
  int kept = a->taps - 1, channels = a->channels;
  for (int64_t m = begin; m < end; m++) {
    float *y = a->y + m * channels;
    if (a->places[m] < 0) {
      memset(y, 0, sizeof(float) * (size_t)channels);
      continue;
    }
    float *window = a->window + (int64_t)(a->places[m] / a->capacity) * kept * channels;
    const float *x = a->x + m * a->stride;
    for (int c = 0; c < channels; c++) {
      float sum = a->bias ? a->bias[c] : 0;
      for (int t = 0; t < kept; t++) sum = fused(a->weight[c * a->taps + t], window[(int64_t)t * channels + c], sum);
      sum = fused(a->weight[c * a->taps + kept], x[c], sum);
      y[c] = sum * sigmoid(sum);
    }
    memmove(window, window + channels, sizeof(float) * (size_t)((kept - 1) * channels));
    memcpy(window + (int64_t)(kept - 1) * channels, x, sizeof(float) * (size_t)channels);
  }
}
void convolution_decode(const float *x, int64_t stride, const float *weight, const float *bias, const int32_t *places,
                        float *window, float *y, int rows, int channels, int taps, int capacity) {
  conv_args a = {NULL, x, weight, bias, y, window, NULL, places, stride, rows, channels, taps, capacity};
  parallel(rows, 1, decode_range, &a);
}
