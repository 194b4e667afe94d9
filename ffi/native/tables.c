// What adapters change of the embedding and of the output head.
#include "native.h"
#include <string.h>

typedef struct {
  float *x, *s;
  const int32_t *ids, *token_row;
  const float *b, *a; // b: by token, or the rows of tokens
  int hidden, rank, width;
  float scale;
} table_args;

static void forward_range(void *context, int64_t begin, int64_t end) {
  const table_args *t = context;
  for (int64_t m = begin; m < end; m++) {
    float *x = t->x + m * t->hidden, *s = t->s + m * t->width;
    if (t->token_row[m] >= 0) memcpy(x, t->b + (int64_t)t->token_row[m] * t->hidden, sizeof(float) * (size_t)t->hidden);
    if (t->rank == 0) continue;
    const float *b = t->b + (int64_t)t->ids[m] * t->rank;
    for (int r = 0; r < t->width; r++) s[r] = r < t->rank ? b[r] : 0;
    for (int i = 0; i < t->hidden; i += 8) { // a hidden size is a multiple of 8
      float sum[8] = {0};
      for (int r = 0; r < t->rank; r++)
        for (int l = 0; l < 8; l++) sum[l] = fused(b[r], t->a[(int64_t)r * t->hidden + i + l], sum[l]);
      for (int l = 0; l < 8; l++) x[i + l] = fused(t->scale, sum[l], x[i + l]);
    }
  }
}
// Of one adapter's rows: those of trained tokens where rank is 0, else x += scale b[id] a, with b[id] kept in s.
void table_forward(float *x, const int32_t *ids, const int32_t *token_row, const float *b, const float *a, float *s, int rows,
                   int hidden, int rank, int width, float scale) {
  parallel(rows, 8, forward_range, &(table_args){x, s, ids, token_row, b, a, hidden, rank, width, scale});
}

// to[i] += the sum over rows, in their order, of from[at[row] + i].
void rows_sum(const float *from, const int32_t *at, int rows, int width, float *to) {
  for (int i = 0; i < width; i += LANES) {
    int lanes = width - i < LANES ? width - i : LANES;
    float sum[LANES] = {0};
    for (int row = 0; row < rows; row++)
      for (int l = 0; l < lanes; l++) sum[l] += from[at[row] + i + l];
    for (int l = 0; l < lanes; l++) to[i + l] += sum[l];
  }
}

void gradients_add(const float *x, float *y, int64_t size) {
  for (int64_t i = 0; i < size; i++) y[i] += x[i];
}

// logits[m, ids[i]] = s[m, i].
void columns_put(float *logits, const float *s, const int32_t *ids, int rows, int classes, int count, int width) {
  for (int m = 0; m < rows; m++)
    for (int i = 0; i < count; i++) logits[(int64_t)m * classes + ids[i]] = s[(int64_t)m * width + i];
}

// The reverse; what is taken becomes 0.
void columns_take(float *logits, float *s, const int32_t *ids, int rows, int classes, int count, int width) {
  for (int m = 0; m < rows; m++)
    for (int i = 0; i < width; i++) {
      s[(int64_t)m * width + i] = 0;
      if (i >= count) continue;
      float *z = logits + (int64_t)m * classes + ids[i];
      s[(int64_t)m * width + i] = *z;
      *z = 0;
    }
}
