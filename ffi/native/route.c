// Routing of tokens to experts: the choice, the weights with their gradient, and the sorting of rows. Tables: src/ops/route.ts.
#include "native.h"
#include <math.h>

#define MOST_EXPERTS 1024

typedef struct {
  const float *logits, *correction;
  const int *bounds;
  int experts, per_token, sigmoid, normalise, groups, kept;
  float eps, scaling;
  int *chosen;
  float *weights;
} choose_args;

// The `count` best of `score`, in descending order, the lower index first where two are the same; -INFINITY is never chosen.
static void best(const float *score, int n, int count, int *chosen) {
  uint8_t taken[MOST_EXPERTS] = {0};
  for (int j = 0; j < count; j++) {
    int found = -1;
    for (int i = 0; i < n; i++)
      if (!taken[i] && (found < 0 || score[i] > score[found])) found = i;
    chosen[j] = found;
    taken[found] = 1;
  }
}

// Of groups of experts all but the best, by their best score, or by the sum of their `counted` two best, are left out.
static void drop_groups(float *score, int n, int groups, int kept, int counted) {
  float sums[MOST_EXPERTS];
  int chosen[MOST_EXPERTS], size = n / groups, two = size < counted ? size : counted;
  for (int g = 0; g < groups; g++) {
    int top[2] = {0, 0};
    best(score + g * size, size, two, top);
    sums[g] = score[g * size + top[0]] + (two > 1 ? score[g * size + top[1]] : 0);
  }
  best(sums, groups, kept, chosen);
  uint8_t keeps[MOST_EXPERTS] = {0};
  for (int j = 0; j < kept; j++) keeps[chosen[j]] = 1;
  for (int i = 0; i < n; i++)
    if (!keeps[i / size]) score[i] = -INFINITY;
}

static float most_of(const float *x, int n) {
  float most = x[0];
  for (int i = 1; i < n; i++) most = x[i] > most ? x[i] : most;
  return most;
}

static float sigmoid_of(float x) { return 1.0f / (1.0f + expf(-x)); }

static void choose_range(void *context, int64_t begin, int64_t end) {
  const choose_args *a = context;
  int E = a->experts, k = a->per_token;
  for (int64_t m = begin; m < end; m++) {
    const float *logits = a->logits + m * E;
    int *chosen = a->chosen + m * k;
    float *weights = a->weights + m * k, score[MOST_EXPERTS], sum = 0;
    if (a->bounds[2 * m] >= a->bounds[2 * m + 1]) {
      for (int j = 0; j < k; j++) chosen[j] = -1, weights[j] = 0;
      continue;
    }
    for (int i = 0; i < E; i++) score[i] = a->sigmoid ? sigmoid_of(logits[i]) + (a->correction ? a->correction[i] : 0) : logits[i];
    if (a->groups > 1) drop_groups(score, E, a->groups, a->kept, a->sigmoid ? 2 : 1);
    best(score, E, k, chosen);
    float most = most_of(logits, E);
    for (int j = 0; j < k; j++) {
      weights[j] = a->sigmoid ? sigmoid_of(logits[chosen[j]]) : expf(logits[chosen[j]] - most);
      sum += weights[j];
    }
    if (!a->normalise) {
      sum = a->sigmoid ? 1 : 0;
      for (int i = 0; i < E && !a->sigmoid; i++) sum += expf(logits[i] - most);
    } else sum += a->eps;
    for (int j = 0; j < k; j++) weights[j] = weights[j] / sum * a->scaling;
  }
}
void route_choose(const float *logits, const float *correction, const int *bounds, int rows, int experts, int per_token,
                  int sigmoid, int normalise, int groups, int kept, float eps, float scaling, int *chosen, float *weights) {
  parallel(rows, 16, choose_range,
           &(choose_args){logits, correction, bounds, experts, per_token, sigmoid, normalise, groups, kept, eps, scaling, chosen,
                          weights});
}

// One pass counts, one places. Rows of no adapter count as those of number `adapters`.
void route_sort(const int *chosen, const int *row_adapter, int row_tile, int rows, int experts, int per_token, int adapters,
                int tile, int sorted, int *place, int *source, int *tile_expert, int *tile_adapter, int *first_row, int *counts) {
  int64_t kinds = adapters + 1;
  for (int64_t i = 0; i < kinds * experts; i++) counts[i] = 0;
  for (int i = 0; i < sorted; i++) source[i] = -1;
  for (int i = 0; i < sorted / tile; i++) tile_expert[i] = tile_adapter[i] = -1;
  for (int64_t pair = 0; pair < (int64_t)rows * per_token; pair++) {
    int adapter = row_adapter[pair / per_token / row_tile];
    if (chosen[pair] >= 0) counts[(adapter < 0 ? adapters : adapter) * (int64_t)experts + chosen[pair]]++;
  }
  int next = 0;
  for (int e = 0; e < experts; e++) {
    first_row[e] = next;
    for (int64_t l = 0; l < kinds; l++) {
      int row = next, count = counts[l * experts + e];
      if (count == 0) continue;
      next += (count + tile - 1) / tile * tile;
      for (int t = row / tile; t < next / tile; t++) tile_expert[t] = e, tile_adapter[t] = l == adapters ? -1 : (int)l;
    }
  }
  first_row[experts] = next;
  // Each group's next free row, in the counts' place until they are there again.
  next = 0;
  for (int e = 0; e < experts; e++)
    for (int64_t l = 0; l < kinds; l++) {
      int *count = &counts[l * experts + e], own = *count;
      *count = next;
      next += (own + tile - 1) / tile * tile;
    }
  for (int64_t pair = 0; pair < (int64_t)rows * per_token; pair++) {
    place[pair] = -1;
    if (chosen[pair] < 0) continue;
    int adapter = row_adapter[pair / per_token / row_tile];
    int *at = &counts[(adapter < 0 ? adapters : adapter) * (int64_t)experts + chosen[pair]];
    place[pair] = *at;
    source[(*at)++] = (int)pair;
  }
  for (int64_t i = 0; i < kinds * experts; i++) counts[i] = 0;
  for (int t = 0; t < next / tile; t++)
    for (int i = t * tile; i < (t + 1) * tile; i++)
      if (source[i] >= 0) counts[(tile_adapter[t] < 0 ? adapters : tile_adapter[t]) * (int64_t)experts + tile_expert[t]]++;
}

typedef struct {
  const float *logits;
  const int *chosen;
  const float *weights, *dweights;
  int experts, per_token, sigmoid, normalise;
  float eps, scaling;
  float *dlogits;
} backward_args;

static void backward_range(void *context, int64_t begin, int64_t end) {
  const backward_args *a = context;
  int E = a->experts, k = a->per_token;
  for (int64_t m = begin; m < end; m++) {
    const float *logits = a->logits + m * E, *weights = a->weights + m * k, *dweights = a->dweights + m * k;
    const int *chosen = a->chosen + m * k;
    float *out = a->dlogits + m * E, mean = 0, sum = 0;
    for (int i = 0; i < E; i++) out[i] = 0;
    if (chosen[0] < 0) continue;
    for (int j = 0; j < k; j++) mean += weights[j] * dweights[j]; // the sum over p_j g_j, with w = scaling p
    if (a->sigmoid) {
      for (int j = 0; j < k; j++) sum += sigmoid_of(logits[chosen[j]]);
      float over = a->normalise ? sum + a->eps : 1;
      for (int j = 0; j < k; j++) {
        float s = sigmoid_of(logits[chosen[j]]);
        out[chosen[j]] = (a->scaling * dweights[j] - (a->normalise ? mean : 0)) / over * s * (1 - s);
      }
      continue;
    }
    if (!a->normalise) {
      float most = most_of(logits, E);
      for (int i = 0; i < E; i++) sum += expf(logits[i] - most);
      for (int i = 0; i < E; i++) out[i] = -expf(logits[i] - most) / sum * mean;
    }
    for (int j = 0; j < k; j++)
      out[chosen[j]] += weights[j] * dweights[j] - (a->normalise ? weights[j] / a->scaling * mean : 0);
  }
}
void route_backward(const float *logits, const int *chosen, const float *weights, const float *dweights, int rows, int experts,
                    int per_token, int sigmoid, int normalise, float eps, float scaling, float *dlogits) {
  parallel(rows, 16, backward_range,
           &(backward_args){logits, chosen, weights, dweights, experts, per_token, sigmoid, normalise, eps, scaling, dlogits});
}
