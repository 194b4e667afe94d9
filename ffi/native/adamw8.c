// AdamW's step with moments of 8 bits.
#include "native.h"
#include <math.h>

#define FACTOR 128          // elements of a block that are of one factor (src/methods/layout.ts), and share a largest value
#define PIECE (32 * FACTOR) // elements that a thread takes at a time
#define CODES 256

typedef struct {
  float *params, *grads, *m_absmax, *v_absmax;
  uint8_t *m, *v;
  const float *codes, *table;
  const int *factors;
} adamw8_args;

// The largest of FACTOR absolute values.
static inline float absmax(const float *values) {
  float most[LANES] = {0};
  for (int i = 0; i < FACTOR; i += LANES)
    for (int l = 0; l < LANES; l++) most[l] = fmaxf(most[l], fabsf(values[i + l]));
  float found = 0;
  for (int l = 0; l < LANES; l++) found = fmaxf(found, most[l]);
  return found;
}

// The codes of FACTOR values by their shares of `most`: how many of the halves between codes lie below. Zeros have that of 0.
static inline void encode(const float *values, float most, const float *halves, uint8_t *codes) {
  int found[FACTOR] = {0};
  float shares[FACTOR];
  for (int i = 0; i < FACTOR; i++) shares[i] = most > 0 ? values[i] / most : 0;
  for (int step = CODES / 2; step > 0; step /= 2)
    for (int i = 0; i < FACTOR; i++) found[i] += halves[found[i] + step - 1] < shares[i] ? step : 0;
  for (int i = 0; i < FACTOR; i++) codes[i] = found[i];
}

static void adamw8_range(void *context, int64_t begin, int64_t end) {
  const adamw8_args *a = context;
  float rest1 = a->table[2], beta2 = a->table[3], rest2 = a->table[4], eps = a->table[5];
  float decay = a->table[6], root = sqrtf(a->table[8]), coefficient = a->table[9];
  const float *m_codes = a->codes, *v_codes = a->codes + 2 * CODES;
  for (int64_t first = begin; first < end; first += FACTOR) {
    int64_t block = first / FACTOR;
    float lr = a->factors[block] ? a->table[10] : a->table[1], step = lr / a->table[7];
    float *params = a->params + first, *grads = a->grads + first, m[FACTOR], v[FACTOR];
    for (int i = 0; i < FACTOR; i++) {
      float g = grads[i] * coefficient;
      float before = m_codes[a->m[first + i]] * a->m_absmax[block];
      m[i] = fused(g - before, rest1, before);
      v[i] = fused(beta2, v_codes[a->v[first + i]] * a->v_absmax[block], rest2 * g * g);
      params[i] = fused(params[i], fused(-lr, decay, 1), -(step * m[i] / (sqrtf(v[i]) / root + eps)));
      grads[i] = 0;
    }
    float m_most = a->m_absmax[block] = absmax(m), v_most = a->v_absmax[block] = absmax(v);
    encode(m, m_most, m_codes + CODES, a->m + first);
    encode(v, v_most, v_codes + CODES, a->v + first);
  }
}

// One step of one adapter's n parameters, a multiple of FACTOR; nothing where its row of the table begins with 0.
void adamw8_step(float *params, float *grads, uint8_t *m, uint8_t *v, float *m_absmax, float *v_absmax, const float *codes,
                 int64_t n, const int *factors, const float *table) {
  if (table[0] == 0) return;
  parallel(n, PIECE, adamw8_range, &(adamw8_args){params, grads, m_absmax, v_absmax, m, v, codes, table, factors});
}
