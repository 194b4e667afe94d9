// Rows times a number that lies on the device.
#include "native.h"

typedef struct {
  const float *x;
  float *y, factor;
} scale_args;

static void rows_scale_range(void *context, int64_t begin, int64_t end) {
  const scale_args *a = context;
  for (int64_t i = begin; i < end; i++) a->y[i] = a->x[i] * a->factor;
}
void rows_scale(const float *x, const float *factor, float *y, int rows, int width) {
  parallel((int64_t)rows * width, 4096, rows_scale_range, &(scale_args){x, y, *factor});
}
