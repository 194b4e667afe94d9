// Mamba 2's recurrence, token by token: the readable reference. A piece of work is one head of one sequence (backward: a part
// of the heads that share B and C), so that no sum depends on what else is computed in the pass.
//
// Of a head's state S[dim][size] each token keeps the share e^(rate step), and writes its value times its step at its B:
//   S = keeps S + step x B^T,  out = S C + skip x.
#include "native.h"
#include <math.h>
#include <string.h>

#define CHUNK 64 // tokens between the states that the backward pass keeps

typedef struct {
  const float *mixed, *steps;
  int64_t steps_stride, dsteps_stride; // from one row to the next
  const float *decay, *bias, *skip, *dout;
  float *out, *dmixed, *dsteps, *state, *scratch;
  int64_t room; // floats of scratch of a thread
  const int32_t *sequences, *places, *bounds;
  int heads, dim, groups, size, capacity;
  float least, most; // limits of a step
  float *sums;       // of the parts of a group after the first: their gradients of B and C
  int parts, rows;
} space_args;

static inline int64_t mixed_width(const space_args *a) {
  return (int64_t)a->heads * a->dim + 2 * (int64_t)a->groups * a->size;
}
static inline int64_t value_column(const space_args *a, int head) { return (int64_t)head * a->dim; }
// Of B; C's is groups * size further.
static inline int64_t key_column(const space_args *a, int head) {
  return (int64_t)a->heads * a->dim + (int64_t)(head / (a->heads / a->groups)) * a->size;
}

typedef struct {
  float step, keeps, rate, slope; // within the limits; e^(-rate step); exp(decay); of the step by dt
} token_step;

static token_step step_of(const space_args *a, int64_t m, int head) {
  float before = a->steps[m * a->steps_stride + head] + a->bias[head], rate = expf(a->decay[head]);
  float step = before > 20.0f ? before : log1pf(expf(before)), slope = 1.0f / (1.0f + expf(-before));
  if (step < a->least) step = a->least, slope = 0;
  if (step > a->most) step = a->most, slope = 0;
  return (token_step){step, expf(-rate * step), rate, slope};
}

// `to` = the state after a token; it may be `from`.
static void write_token(const space_args *a, const float *from, float *to, int64_t m, int head) {
  const float *row = a->mixed + m * mixed_width(a), *x = row + value_column(a, head), *key = row + key_column(a, head);
  token_step of = step_of(a, m, head);
  for (int i = 0; i < a->dim; i++) {
    float value = of.step * x[i];
    for (int j = 0; j < a->size; j++) to[i * a->size + j] = fused(of.keeps, from[i * a->size + j], value * key[j]);
  }
}

static void read_out(const space_args *a, const float *state, int64_t m, int head, float *out) {
  const float *row = a->mixed + m * mixed_width(a), *x = row + value_column(a, head);
  const float *query = row + key_column(a, head) + (int64_t)a->groups * a->size;
  for (int i = 0; i < a->dim; i++) out[i] = fused(a->skip[head], x[i], dot(state + i * a->size, query, a->size));
}

static void forward_range(void *context, int64_t begin, int64_t end) {
  const space_args *a = context;
  int64_t size = (int64_t)a->dim * a->size;
  float *state = a->scratch + thread_number() * a->room;
  for (int64_t piece = begin; piece < end; piece++) {
    const int32_t *sequence = a->sequences + 2 * (piece / a->heads);
    int head = (int)(piece % a->heads);
    int64_t last = sequence[0] + sequence[1] - 1;
    memset(state, 0, sizeof(float) * (size_t)size);
    for (int64_t m = sequence[0]; m <= last; m++) {
      write_token(a, state, state, m, head);
      read_out(a, state, m, head, a->out + (m * a->heads + head) * a->dim);
    }
    if (a->state && a->places[last] >= 0) {
      int64_t slot = a->places[last] / a->capacity;
      memcpy(a->state + (slot * a->heads + head) * size, state, sizeof(float) * (size_t)size);
    }
  }
}
void statespace_forward(const float *mixed, const float *steps, int64_t steps_stride, const float *decay, const float *bias,
                        const float *skip, const int32_t *sequences, int count, const int32_t *places, float *state,
                        int capacity, float *out, float *scratch, int64_t room, int heads, int dim, int groups, int size,
                        float least, float most) {
  space_args a = {mixed, steps, steps_stride, 0, decay, bias, skip, NULL, out, NULL, NULL, state, scratch, room, sequences,
                  places, NULL, heads, dim, groups, size, capacity, least, most, NULL, 1, 0};
  parallel((int64_t)count * heads, 1, forward_range, &a);
}

// Of one row of a state: what reading it at the query adds to its gradient g, and what both add to those of key and query.
static inline void read_gradient(int size, float dout, float value, const float *restrict query, const float *restrict after,
                                 float *restrict g, float *restrict dkey, float *restrict dquery) {
  for (int j = 0; j < size; j++) {
    g[j] = fused(dout, query[j], g[j]);
    dquery[j] = fused(dout, after[j], dquery[j]);
    dkey[j] = fused(value, g[j], dkey[j]);
  }
}

// Where a part of the heads adds to the gradients of a token's B and C of all groups.
static float *shared_gradients(const space_args *a, int64_t m, int part) {
  if (part == 0) return a->dmixed + m * mixed_width(a) + (int64_t)a->heads * a->dim;
  return a->sums + ((int64_t)(part - 1) * a->rows + m) * 2 * a->groups * a->size;
}

// Of one token: the gradient of the state after it becomes that of the state before it.
static void token_backward(const space_args *a, int64_t m, int head, int part, const float *before, const float *after,
                           float *gradient) {
  int64_t width = mixed_width(a), keys = key_column(a, head), between = (int64_t)a->groups * a->size;
  const float *row = a->mixed + m * width, *x = row + value_column(a, head), *key = row + keys, *query = key + between;
  const float *dout = a->dout + (m * a->heads + head) * a->dim;
  float *dx = a->dmixed + m * width + value_column(a, head), *dkey = shared_gradients(a, m, part), *dquery;
  dkey += keys - (int64_t)a->heads * a->dim;
  dquery = dkey + between;
  token_step of = step_of(a, m, head);
  float dstep = 0, dkeeps = 0;
  for (int i = 0; i < a->dim; i++) {
    float *g = gradient + i * a->size;
    read_gradient(a->size, dout[i], of.step * x[i], query, after + i * a->size, g, dkey, dquery);
    float along = dot(g, key, a->size);
    dx[i] = fused(a->skip[head], dout[i], of.step * along);
    dstep = fused(along, x[i], dstep);
    dkeeps += dot(g, before + i * a->size, a->size);
    for (int j = 0; j < a->size; j++) g[j] *= of.keeps;
  }
  a->dsteps[m * a->dsteps_stride + head] = fused(-(of.rate * of.keeps), dkeeps, dstep) * of.slope;
}

static void head_backward(const space_args *a, const int32_t *sequence, int head, int part, float *room) {
  int64_t size = (int64_t)a->dim * a->size;
  float *gradient = room, *states = gradient + size, *kept = states + (CHUNK + 1) * size;
  int chunks = (sequence[1] + CHUNK - 1) / CHUNK;
  memset(kept, 0, sizeof(float) * (size_t)size);
  for (int c = 0; c + 1 < chunks; c++) {
    float *state = kept + (c + 1) * size;
    memcpy(state, kept + c * size, sizeof(float) * (size_t)size);
    for (int t = 0; t < CHUNK; t++) write_token(a, state, state, sequence[0] + c * CHUNK + t, head);
  }
  memset(gradient, 0, sizeof(float) * (size_t)size);
  for (int c = chunks - 1; c >= 0; c--) {
    int64_t first = sequence[0] + c * CHUNK;
    int tokens = sequence[1] - c * CHUNK < CHUNK ? sequence[1] - c * CHUNK : CHUNK;
    memcpy(states, kept + c * size, sizeof(float) * (size_t)size);
    for (int t = 0; t < tokens; t++) write_token(a, states + t * size, states + (t + 1) * size, first + t, head);
    for (int t = tokens - 1; t >= 0; t--)
      token_backward(a, first + t, head, part, states + t * size, states + (t + 1) * size, gradient);
  }
}

static void backward_range(void *context, int64_t begin, int64_t end) {
  const space_args *a = context;
  int each = a->heads / a->groups;
  float *room = a->scratch + thread_number() * a->room;
  for (int64_t piece = begin; piece < end; piece++) {
    const int32_t *sequence = a->sequences + 2 * (piece / (a->groups * a->parts));
    int group = (int)(piece / a->parts % a->groups), part = (int)(piece % a->parts);
    for (int i = part * each / a->parts; i < (part + 1) * each / a->parts; i++)
      head_backward(a, sequence, group * each + i, part, room);
  }
}

static void clear_range(void *context, int64_t begin, int64_t end) {
  const space_args *a = context;
  int64_t width = mixed_width(a);
  memset(a->dmixed + begin * width, 0, sizeof(float) * (size_t)((end - begin) * width));
  for (int64_t m = begin; m < end; m++)
    for (int part = 1; part < a->parts; part++)
      memset(shared_gradients(a, m, part), 0, sizeof(float) * 2 * (size_t)(a->groups * a->size));
  for (int64_t m = begin; m < end; m++)
    if (a->bounds[2 * m + 1] <= a->bounds[2 * m])
      memset(a->dsteps + m * a->dsteps_stride, 0, sizeof(float) * (size_t)a->heads);
}
static void sum_range(void *context, int64_t begin, int64_t end) {
  const space_args *a = context;
  for (int64_t m = begin; m < end; m++)
    for (int part = 1; part < a->parts; part++) {
      float *to = shared_gradients(a, m, 0), *from = shared_gradients(a, m, part);
      for (int i = 0; i < 2 * a->groups * a->size; i++) to[i] += from[i];
    }
}

void statespace_backward(const float *dout, const float *mixed, const float *steps, int64_t steps_stride, const float *decay,
                         const float *bias, const float *skip, const int32_t *bounds, int rows, const int32_t *sequences,
                         int count, float *dmixed, float *dsteps, int64_t dsteps_stride, float *scratch, int64_t room,
                         float *sums, int parts, int heads, int dim, int groups, int size, float least, float most) {
  space_args a = {mixed, steps, steps_stride, dsteps_stride, decay, bias, skip, dout, NULL, dmixed, dsteps, NULL, scratch, room,
                  sequences, NULL, bounds, heads, dim, groups, size, 0, least, most, sums, parts, rows};
  parallel(rows, 16, clear_range, &a);
  parallel((int64_t)count * groups * parts, 1, backward_range, &a);
  parallel(rows, 16, sum_range, &a);
}

static void decode_range(void *context, int64_t begin, int64_t end) {
  const space_args *a = context;
  int64_t size = (int64_t)a->dim * a->size;
  for (int64_t piece = begin; piece < end; piece++) {
    int64_t m = piece / a->heads;
    int head = (int)(piece % a->heads);
    float *out = a->out + piece * a->dim;
    if (a->places[m] < 0) {
      memset(out, 0, sizeof(float) * (size_t)a->dim);
      continue;
    }
    float *state = a->state + ((int64_t)(a->places[m] / a->capacity) * a->heads + head) * size;
    write_token(a, state, state, m, head);
    read_out(a, state, m, head, out);
  }
}
void statespace_decode(const float *mixed, const float *steps, int64_t steps_stride, const float *decay, const float *bias,
                       const float *skip, const int32_t *places, float *state, int capacity, float *out, int rows, int heads,
                       int dim, int groups, int size, float least, float most) {
  space_args a = {mixed, steps, steps_stride, 0, decay, bias, skip, NULL, out, NULL, NULL, state, NULL, 0, NULL,
                  places, NULL, heads, dim, groups, size, capacity, least, most, NULL, 1, 0};
  parallel((int64_t)rows * heads, 1, decode_range, &a);
}
