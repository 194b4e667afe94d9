// Rows by index: gather and scatter.
#include "native.h"
#include <string.h>

typedef struct {
  const int32_t *rows;
  const float *from;
  float *to;
  int width;
} move_args;

static void gather_range(void *context, int64_t begin, int64_t end) {
  const move_args *a = context;
  size_t bytes = sizeof(float) * (size_t)a->width;
  for (int64_t t = begin; t < end; t++)
    if (a->rows[t] < 0) memset(a->to + t * a->width, 0, bytes);
    else memcpy(a->to + t * a->width, a->from + (int64_t)a->rows[t] * a->width, bytes);
}
void rows_gather(const float *x, const int32_t *rows, float *y, int count, int width) {
  parallel(count, 64, gather_range, &(move_args){rows, x, y, width});
}

typedef struct {
  const int32_t *rows;
  const uint16_t *from;
  uint32_t *to;
  int width;
} widen_args;

static void widen_range(void *context, int64_t begin, int64_t end) {
  const widen_args *a = context;
  for (int64_t t = begin; t < end; t++) {
    const uint16_t *from = a->from + (int64_t)a->rows[t] * a->width;
    uint32_t *to = a->to + t * a->width;
    for (int i = 0; i < a->width; i++) to[i] = (uint32_t)from[i] << 16;
  }
}
// The same of a table in bf16, for rows that are not below zero.
void rows_widen(const uint16_t *x, const int32_t *rows, float *y, int count, int width) {
  parallel(count, 64, widen_range, &(widen_args){rows, x, (uint32_t *)y, width});
}

static void scatter_range(void *context, int64_t begin, int64_t end) {
  const move_args *a = context;
  for (int64_t t = begin; t < end; t++)
    if (a->rows[t] >= 0)
      memcpy(a->to + (int64_t)a->rows[t] * a->width, a->from + t * a->width, sizeof(float) * (size_t)a->width);
}
void rows_scatter(const float *dy, const int32_t *rows, float *dx, int count, int width) {
  parallel(count, 64, scatter_range, &(move_args){rows, dy, dx, width});
}
