// Short gated convolution: of a row's three parts b, c and x, y = c times the causal depthwise convolution of b x; a channel by
// itself.
#include "native.h"
#include <string.h>

#define BLOCK 64 // channels of a piece of work

typedef struct {
  const float *dy, *bcx, *weight;
  float *y, *window;
  const int32_t *bounds, *places;
  int rows, channels, taps, capacity;
} short_args;

// u = b x of one channel.
static inline float gated(const short_args *a, int64_t m, int c) {
  const float *row = a->bcx + m * 3 * a->channels;
  return row[c] * row[2 * a->channels + c];
}

// The sum over the taps of one channel; `first`: the first row of the row's sequence.
static inline float taps_sum(const short_args *a, int64_t m, int64_t first, int c) {
  float sum = 0;
  for (int t = 0; t < a->taps; t++) {
    int64_t from = m - a->taps + 1 + t;
    if (from >= first) sum = fused(a->weight[c * a->taps + t], gated(a, from, c), sum);
  }
  return sum;
}

static void forward_range(void *context, int64_t begin, int64_t end) {
  const short_args *a = context;
  for (int64_t m = begin; m < end; m++) {
    float *y = a->y + m * a->channels;
    int32_t first = a->bounds[2 * m];
    if (a->bounds[2 * m + 1] <= first) memset(y, 0, sizeof(float) * (size_t)a->channels);
    else
      for (int c = 0; c < a->channels; c++) y[c] = a->bcx[m * 3 * a->channels + a->channels + c] * taps_sum(a, m, first, c);
  }
}
void shortconv_forward(const float *bcx, const float *weight, const int32_t *bounds, float *y, int rows, int channels,
                       int taps) {
  short_args a = {NULL, bcx, weight, y, NULL, bounds, NULL, rows, channels, taps, 0};
  parallel(rows, 16, forward_range, &a);
}

// From the last row to the first: `after` has the gradients of the sums of the rows after it, the next one's first.
static void backward_range(void *context, int64_t begin, int64_t end) {
  const short_args *a = context;
  int taps = a->taps, channels = a->channels;
  float after[8];
  for (int c = (int)begin; c < (int)end; c++) {
    memset(after, 0, sizeof(after));
    for (int64_t m = a->rows - 1; m >= 0; m--) {
      const float *row = a->bcx + m * 3 * channels + c;
      float *to = a->y + m * 3 * channels + c, du = 0;
      int32_t first = a->bounds[2 * m], last = a->bounds[2 * m + 1];
      to[0] = to[channels] = to[2 * channels] = 0;
      if (last <= first || m == last - 1) memset(after, 0, sizeof(after));
      if (last <= first) continue;
      float dy = a->dy[m * channels + c];
      memmove(after + 1, after, sizeof(float) * (size_t)(taps - 1));
      after[0] = dy * row[channels];
      for (int t = 0; t < taps; t++) du = fused(a->weight[c * taps + taps - 1 - t], after[t], du);
      to[0] = du * row[2 * channels];
      to[channels] = dy * taps_sum(a, m, first, c);
      to[2 * channels] = du * row[0];
    }
  }
}
void shortconv_backward(const float *dy, const float *bcx, const float *weight, const int32_t *bounds, float *dbcx, int rows,
                        int channels, int taps) {
  short_args a = {dy, bcx, weight, dbcx, NULL, bounds, NULL, rows, channels, taps, 0};
  parallel(channels, BLOCK, backward_range, &a);
}

static void keep_range(void *context, int64_t begin, int64_t end) {
  const short_args *a = context;
  int kept = a->taps - 1;
  for (int64_t m = begin; m < end; m++) {
    int32_t first = a->bounds[2 * m];
    if (a->bounds[2 * m + 1] != m + 1 || first > m || a->places[m] < 0) continue;
    float *window = a->window + (int64_t)(a->places[m] / a->capacity) * kept * a->channels;
    for (int t = 0; t < kept; t++) {
      int64_t from = m - kept + 1 + t;
      for (int c = 0; c < a->channels; c++) window[t * a->channels + c] = from < first ? 0 : gated(a, from, c);
    }
  }
}
void shortconv_keep(const float *bcx, const int32_t *bounds, const int32_t *places, float *window, int rows, int channels,
                    int taps, int capacity) {
  short_args a = {NULL, bcx, NULL, NULL, window, bounds, places, rows, channels, taps, capacity};
  parallel(rows, 16, keep_range, &a);
}

static void decode_range(void *context, int64_t begin, int64_t end) {
  const short_args *a = context;
  int kept = a->taps - 1, channels = a->channels;
  for (int64_t m = begin; m < end; m++) {
    float *y = a->y + m * channels;
    if (a->places[m] < 0) {
      memset(y, 0, sizeof(float) * (size_t)channels);
      continue;
    }
    float *window = a->window + (int64_t)(a->places[m] / a->capacity) * kept * channels;
    for (int c = 0; c < channels; c++) {
      float sum = 0, u = gated(a, m, c);
      for (int t = 0; t < kept; t++) {
        float *at = window + t * channels + c;
        sum = fused(a->weight[c * a->taps + t], *at, sum);
        *at = t + 1 < kept ? at[channels] : u;
      }
      y[c] = a->bcx[m * 3 * channels + channels + c] * fused(a->weight[c * a->taps + kept], u, sum);
    }
  }
}
void shortconv_decode(const float *bcx, const float *weight, const int32_t *places, float *window, float *y, int rows,
                      int channels, int taps, int capacity) {
  short_args a = {NULL, bcx, weight, y, window, NULL, places, rows, channels, taps, capacity};
  parallel(rows, 1, decode_range, &a);
}
