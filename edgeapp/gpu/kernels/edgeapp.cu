// What edgeapp computes on the GPU beside TensorRT: pictures -> network input, dense detector output -> boxes.
// `./build.sh kernels` compiles it without a GPU. tests/cuda_on_cpu.h makes C++ of it: what is used of CUDA is there.
//
// Every launch: blocks of TILE_WIDTH x TILE_HEIGHT threads, blockIdx.z = place in the batch.

#ifdef __CUDACC__
static __device__ unsigned short half_of(float value) {
  unsigned short bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
}

static __device__ float float_of(unsigned short half) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(half));
  return value;
}
#endif

#define TILE_WIDTH 32
#define TILE_HEIGHT 8
#define WARP 0xffffffffu

typedef unsigned char Byte;
typedef long long Fixed;  // source pixels * 2^fraction: no double, which most GPUs do at 1/64 of the speed

// --- pictures -> network input ------------------------------------------------------------------------------------

// One place of a batch; PICTURE in gpu/preprocess.py. The centre of a picture's first pixel is 0.5, as with Pillow.
struct Picture {
  unsigned long long offset;  // of the first pixel from the start of the pixel buffer, bytes
  Fixed start_x, step_x;      // centre of the first column that is made, distance to the next
  Fixed start_y, step_y;
  unsigned row_bytes;
  int pixel_bytes;    // 3: RGB; 4: RGB and a byte that does not matter
  int width, height;  // width 0: nobody uses this place, it becomes zeros
  int left, top, inner_width, inner_height;  // where it goes in the network's input; around it is padding
  int fraction, unused;                      // bits, at least 24
};

enum { FLOAT32, FLOAT16, BFLOAT16, UINT8 };

// The network's input; NETWORK in gpu/preprocess.py.
struct Network {
  int width, height, nhwc, gray, bgr, dtype, pad;
  float factor[3], shift[3];  // pixel * factor + shift, by channel of the tensor
};

// Which source pixels make one output column or row.
struct Axis {
  int first, count;      // plain: the two pixels; count is -1 outside the picture
  float share;           // plain: of the second pixel
  Fixed start, support;  // antialias: from the output's centre to that of the first pixel; where weights become 0
  Fixed sum;             // antialias: of the weights
  float unit;            // antialias: 2^PRECISION / sum
  int fraction, shift;   // antialias: of start and support; weights lose `shift` bits, so that 40 are left
};

#define TAPS 64  // weights kept for a column or row; those beyond (shrinking by more than 31) are made every time
#define PRECISION 22  // bits of a weight, as in Pillow

// What the threads of a block share.
struct Axes {
  Axis columns[TILE_WIDTH], rows[TILE_HEIGHT];
};

struct Weights {
  int across[TAPS][TILE_WIDTH], down[TAPS][TILE_HEIGHT];
};

// A triangle as wide as the output pixel, or as a source pixel if that is wider.
static __device__ Fixed triangle(const Axis &axis, int tap) {
  Fixed distance = axis.start + ((Fixed)tap << axis.fraction);
  Fixed height = axis.support - (distance < 0 ? -distance : distance);
  return height > 0 ? (height + (1ll << axis.shift >> 1)) >> axis.shift : 0;
}

// Pillow's rule, src/libImaging/Resample.c: the triangle is cut at the picture's edges and its sum brought to 1.
static __device__ Axis antialias_axis(Fixed start, Fixed step, int index, int size, int fraction) {
  Fixed one = 1ll << fraction, half = one / 2, centre = start + index * step;
  Axis axis;
  axis.support = step > one ? step : one;
  Fixed first = (centre - axis.support + half) >> fraction, end = (centre + axis.support + half) >> fraction;
  axis.first = first < 0 ? 0 : (int)first;
  axis.count = (end > size ? size : (int)end) - axis.first;
  axis.share = 0;
  axis.start = ((Fixed)axis.first << fraction) + half - centre;
  axis.fraction = fraction;
  axis.shift = max(0, 64 - __clzll(axis.support) - 40);
  axis.sum = 0;
#pragma unroll 1
  for (int tap = 0; tap < axis.count; ++tap) axis.sum += triangle(axis, tap);
  axis.unit = axis.sum > 0 ? (1 << PRECISION) / (float)axis.sum : 0;
  return axis;
}

// triangle * 2^PRECISION / sum, rounded exactly: were it a little off, a whole column of ties would fall to the other
// side. The quotient in single precision is off by 1 at most or so.
static __device__ int weight(const Axis &axis, int tap) {
  Fixed height = triangle(axis, tap);
  int quotient = (int)((float)height * axis.unit);
  Fixed rest = (height << PRECISION) + axis.sum / 2 - quotient * axis.sum;
  while (rest < 0) --quotient, rest += axis.sum;
  while (rest >= axis.sum) ++quotient, rest -= axis.sum;
  return quotient;
}

// Image.transform with AFFINE and BILINEAR, src/libImaging/Geometry.c.
static __device__ Axis plain_axis(Fixed start, Fixed step, int index, int size, int fraction) {
  Fixed centre = start + index * step, corner = centre - (1ll << (fraction - 1)), pixel = corner >> fraction;
  Axis axis = {};
  axis.first = pixel < 0 ? 0 : (int)pixel;
  axis.count = pixel + 1 < size ? (int)pixel + 1 : size - 1;
  if (centre < 0 || (centre >> fraction) >= size) axis.count = -1;
  axis.share = (float)(int)(corner >> (fraction - 24) & 0xffffff) * (1.0f / (1 << 24));
  return axis;
}

// Red, green, blue from the lowest byte on; the highest byte is anything. A pixel of three bytes is cut out of the
// aligned words that it touches: none of them lies outside the allocation.
template <int PIXEL_BYTES> static __device__ unsigned load(const Byte *at) {
  if (PIXEL_BYTES == 4) return *(const unsigned *)at;
  unsigned shift = ((unsigned)(unsigned long long)at & 3) * 8;
  const unsigned *word = (const unsigned *)(at - shift / 8);
  return shift > 8 ? word[0] >> shift | word[1] << (32 - shift) : word[0] >> shift;
}

template <int CHANNELS> static __device__ int channel(unsigned pixel, int c) {
  // Image.convert("L"), src/libImaging/Convert.c
  if (CHANNELS == 1)
    return ((pixel & 255) * 19595 + (pixel >> 8 & 255) * 38470 + (pixel >> 16 & 255) * 7471 + 0x8000) >> 16;
  return pixel >> 8 * c & 255;
}

template <int CHANNELS> static __device__ void add(int (&sums)[CHANNELS], int weight, unsigned pixel) {
#pragma unroll
  for (int c = 0; c < CHANNELS; ++c) sums[c] += weight * channel<CHANNELS>(pixel, c);
}

template <int CHANNELS>
static __device__ void store(void *tensor, const Network &net, int x, int y, const int (&pixel)[CHANNELS], bool used) {
  unsigned long long area = (unsigned long long)net.width * net.height;
  unsigned long long at = blockIdx.z * area * CHANNELS + ((long long)y * net.width + x) * (net.nhwc ? CHANNELS : 1);
#pragma unroll
  for (int c = 0; c < CHANNELS; ++c, at += net.nhwc ? 1 : area) {
    int byte = net.bgr ? pixel[CHANNELS - 1 - c] : pixel[c];
    if (net.dtype == UINT8) {
      ((Byte *)tensor)[at] = used ? byte : 0;
      continue;
    }
    // Two roundings, as NumPy does it.
    float value = used ? __fadd_rn(__fmul_rn((float)byte, net.factor[c]), net.shift[c]) : 0;
    if (net.dtype == FLOAT32) ((float *)tensor)[at] = value;
    if (net.dtype == FLOAT16) ((unsigned short *)tensor)[at] = half_of(value);
    if (net.dtype == BFLOAT16) {
      unsigned bits = __float_as_uint(value);
      ((unsigned short *)tensor)[at] = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    }
  }
}

// Along the rows first, rounded to 8 bits, then down: Pillow's order. (Pillow 13 goes down first with some pictures
// that are tall or shrink more in height; then up to a quarter of the numbers differs by one.)
template <int CHANNELS, int PIXEL_BYTES>
static __device__ void sample_antialiased(const Byte *pixels, unsigned row_bytes, const Axis &column, const Axis &row,
                                          const Weights &weights, int (&result)[CHANNELS]) {
  int kept = min(column.count, TAPS), sums[CHANNELS];
#pragma unroll
  for (int c = 0; c < CHANNELS; ++c) sums[c] = 1 << (PRECISION - 1);
  const Byte *line = pixels + (unsigned long long)row.first * row_bytes + (long long)column.first * PIXEL_BYTES;
  for (int j = 0; j < row.count; ++j, line += row_bytes) {
    int line_sums[CHANNELS];
#pragma unroll
    for (int c = 0; c < CHANNELS; ++c) line_sums[c] = 1 << (PRECISION - 1);
    const Byte *at = line;
#pragma unroll 4
    for (int i = 0; i < kept; ++i, at += PIXEL_BYTES)
      add<CHANNELS>(line_sums, weights.across[i][threadIdx.x], load<PIXEL_BYTES>(at));
#pragma unroll 1
    for (int i = kept; i < column.count; ++i, at += PIXEL_BYTES)
      add<CHANNELS>(line_sums, weight(column, i), load<PIXEL_BYTES>(at));
    int share = j < TAPS ? weights.down[j][threadIdx.y] : weight(row, j);
#pragma unroll
    for (int c = 0; c < CHANNELS; ++c) sums[c] += share * min(line_sums[c] >> PRECISION, 255);
  }
#pragma unroll
  for (int c = 0; c < CHANNELS; ++c) result[c] = min(sums[c] >> PRECISION, 255);
}

template <int CHANNELS, int PIXEL_BYTES>
static __device__ void sample_plain(const Byte *pixels, unsigned row_bytes, const Axis &column, const Axis &row,
                                    int (&result)[CHANNELS]) {
  bool inside = column.count >= 0 && row.count >= 0;
  unsigned corners[4] = {0, 0, 0, 0};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    unsigned long long x = i & 1 ? column.count : column.first, y = i & 2 ? row.count : row.first;
    if (inside) corners[i] = load<PIXEL_BYTES>(pixels + y * row_bytes + x * PIXEL_BYTES);
  }
#pragma unroll
  for (int c = 0; c < CHANNELS; ++c) {
    float a = channel<CHANNELS>(corners[0], c), b = channel<CHANNELS>(corners[1], c);
    float d = channel<CHANNELS>(corners[2], c), e = channel<CHANNELS>(corners[3], c);
    float upper = a + (b - a) * column.share, lower = d + (e - d) * column.share;
    // Pillow cuts the fraction off; the little more keeps whole numbers whole in single precision.
    result[c] = (int)(upper + (lower - upper) * row.share + 1.0f / 4096);
  }
}

template <int CHANNELS, int PIXEL_BYTES>
static __device__ void sample(const Byte *pixels, unsigned row_bytes, const Axes &axes, const Weights *weights,
                              int (&result)[CHANNELS]) {
  const Axis &column = axes.columns[threadIdx.x], &row = axes.rows[threadIdx.y];
  if (weights)
    sample_antialiased<CHANNELS, PIXEL_BYTES>(pixels, row_bytes, column, row, *weights, result);
  else
    sample_plain<CHANNELS, PIXEL_BYTES>(pixels, row_bytes, column, row, result);
}

// Without weights: plain.
template <int CHANNELS>
static __device__ void prepare(const Byte *pixels, const Picture *pictures, void *tensor, const Network &net,
                               Axes &axes, Weights *weights) {
  const Picture picture = pictures[blockIdx.z];
  int left = blockIdx.x * TILE_WIDTH, top = blockIdx.y * TILE_HEIGHT;
  int x = left + threadIdx.x, y = top + threadIdx.y;
  int thread = threadIdx.y * TILE_WIDTH + threadIdx.x;
  bool used = picture.width > 0;

  if (used && thread < TILE_WIDTH + TILE_HEIGHT) {
    bool is_row = thread >= TILE_WIDTH;
    Fixed start = is_row ? picture.start_y : picture.start_x, step = is_row ? picture.step_y : picture.step_x;
    int index = is_row ? top + thread - TILE_WIDTH - picture.top : left + thread - picture.left;
    int size = is_row ? picture.height : picture.width;
    int count = is_row ? picture.inner_height : picture.inner_width;
    Axis axis = {};
    if (index >= 0 && index < count)
      axis = weights ? antialias_axis(start, step, index, size, picture.fraction)
                     : plain_axis(start, step, index, size, picture.fraction);
    if (is_row)
      axes.rows[thread - TILE_WIDTH] = axis;
    else
      axes.columns[thread] = axis;
  }
  __syncthreads();
  if (weights && used) {
    const Axis &column = axes.columns[threadIdx.x], &row = axes.rows[thread % TILE_HEIGHT];
    for (int tap = threadIdx.y; tap < TAPS && tap < column.count; tap += TILE_HEIGHT)
      weights->across[tap][threadIdx.x] = weight(column, tap);
    for (int tap = thread / TILE_HEIGHT; tap < TAPS && tap < row.count; tap += TILE_WIDTH)
      weights->down[tap][thread % TILE_HEIGHT] = weight(row, tap);
  }
  __syncthreads();

  if (x >= net.width || y >= net.height) return;
  int result[CHANNELS];
#pragma unroll
  for (int c = 0; c < CHANNELS; ++c) result[c] = net.pad;
  bool inside = x >= picture.left && x < picture.left + picture.inner_width && y >= picture.top &&
                y < picture.top + picture.inner_height;
  if (used && inside) {
    const Byte *first = pixels + picture.offset;
    if (picture.pixel_bytes == 4)
      sample<CHANNELS, 4>(first, picture.row_bytes, axes, weights, result);
    else
      sample<CHANNELS, 3>(first, picture.row_bytes, axes, weights, result);
  }
  store<CHANNELS>(tensor, net, x, y, result, used);
}

extern "C" __global__ void prepare_antialias(const Byte *pixels, const Picture *pictures, void *tensor, Network net) {
  __shared__ Axes axes;
  __shared__ Weights weights;
  if (net.gray)
    prepare<1>(pixels, pictures, tensor, net, axes, &weights);
  else
    prepare<3>(pixels, pictures, tensor, net, axes, &weights);
}

extern "C" __global__ void prepare_plain(const Byte *pixels, const Picture *pictures, void *tensor, Network net) {
  __shared__ Axes axes;
  if (net.gray)
    prepare<1>(pixels, pictures, tensor, net, axes, 0);
  else
    prepare<3>(pixels, pictures, tensor, net, axes, 0);
}

// --- dense detector output -> candidates --------------------------------------------------------------------------

// The head; HEAD in gpu/filter.py.
struct Head {
  int boxes, classes, most;
  float threshold;
  int least;  // the bits of the smallest float16 that reaches the threshold
};

// One candidate; CANDIDATE in records.py.
struct Candidate {
  int box, class_id;
  float score, centre_x, centre_y, width, height;
};

struct Float32 {
  typedef float Stored;
  static __device__ float value(float stored) { return stored; }
  static __device__ bool reaches(float best, int, const Head &head) { return best >= head.threshold; }
  static __device__ int bits(float) { return 0; }
};

struct Float16 {
  typedef unsigned short Stored;
  static __device__ float value(unsigned short stored) { return float_of(stored); }
  static __device__ bool reaches(float, int bits, const Head &head) { return bits >= head.least; }
  static __device__ int bits(unsigned short stored) { return (short)stored; }
};

// The best class so far, by the rules of NumPy's argmax: the first one wins, and NaN beats all.
struct Best {
  float score;
  int class_id, bits;
};

#define NOBODY {-__int_as_float(0x7f800000), 0x7fffffff, -32768}

static __device__ void consider(Best &best, float score, int class_id, int bits) {
  bool tie = score == best.score || (score != score && best.score != best.score);
  bool above = score > best.score || (score != score && best.score == best.score);
  if (above || (tie && class_id < best.class_id)) {
    best.score = score;
    best.class_id = class_id;
  }
  best.bits = max(best.bits, bits);
}

// Behind the counts, one a place, lie `most` candidates a place. The count goes on when they are full.
template <typename Kind>
static __device__ void keep(void *results, const Head &head, int box, const Best &best,
                            const typename Kind::Stored *numbers, unsigned long long stride) {
  int slot = atomicAdd((int *)results + blockIdx.z, 1);
  if (slot >= head.most) return;
  Candidate *candidates = (Candidate *)((int *)results + gridDim.z) + (unsigned long long)blockIdx.z * head.most;
  Candidate candidate = {box,
                         best.class_id,
                         best.score < 0 ? 0 : best.score,
                         Kind::value(numbers[0]),
                         Kind::value(numbers[stride]),
                         Kind::value(numbers[2 * stride]),
                         Kind::value(numbers[3 * stride])};
  candidates[slot] = candidate;
}

// (4 + classes, boxes): a thread a box, TILE_HEIGHT threads share its classes.
template <typename Kind> static __device__ void filter_columns(const void *tensor, void *results, const Head &head) {
  __shared__ Best bests[TILE_HEIGHT][TILE_WIDTH];
  int box = blockIdx.x * TILE_WIDTH + threadIdx.x;
  unsigned long long rows = 4 + head.classes, stride = head.boxes;
  const typename Kind::Stored *column = (const typename Kind::Stored *)tensor + blockIdx.z * rows * stride + box;
  Best best = NOBODY;
  if (box < head.boxes) {
    // Four loads on their way at once.
#pragma unroll 4
    for (int c = threadIdx.y; c < head.classes; c += TILE_HEIGHT) {
      typename Kind::Stored stored = column[(4 + c) * stride];
      consider(best, Kind::value(stored), c, Kind::bits(stored));
    }
  }
  bests[threadIdx.y][threadIdx.x] = best;
  __syncthreads();
  if (threadIdx.y || box >= head.boxes) return;
#pragma unroll 1
  for (int i = 1; i < TILE_HEIGHT; ++i) {
    Best other = bests[i][threadIdx.x];
    consider(best, other.score, other.class_id, other.bits);
  }
  if (Kind::reaches(best.score, best.bits, head)) keep<Kind>(results, head, box, best, column, stride);
}

// (boxes, 4 + classes), or with objectness (boxes, 5 + classes): a warp a box. With objectness a warp looks at that of
// 32 boxes first and only at the classes of those that pass.
template <typename Kind, bool OBJECTNESS>
static __device__ void filter_rows(const void *tensor, void *results, const Head &head) {
  const int warp_boxes = OBJECTNESS ? 32 : 4, numbers = OBJECTNESS ? 5 : 4;
  unsigned long long stride = numbers + head.classes;
  const typename Kind::Stored *place = (const typename Kind::Stored *)tensor + blockIdx.z * stride * head.boxes;
  int lane = threadIdx.x, first = (blockIdx.x * TILE_HEIGHT + threadIdx.y) * warp_boxes;
  bool wanted = lane < warp_boxes && first + lane < head.boxes;
  if (OBJECTNESS && wanted) {
    typename Kind::Stored stored = place[(first + lane) * stride + 4];
    wanted = Kind::reaches(Kind::value(stored), Kind::bits(stored), head);
  }
  for (unsigned left = __ballot_sync(WARP, wanted); left; left &= left - 1) {
    int box = first + __ffs(left) - 1;
    const typename Kind::Stored *row = place + box * stride;
    float objectness = OBJECTNESS ? Kind::value(row[4]) : 1;
    Best best = NOBODY;
#pragma unroll 2
    for (int c = lane; c < head.classes; c += 32) {
      typename Kind::Stored stored = row[numbers + c];
      consider(best, __fmul_rn(Kind::value(stored), objectness), c, Kind::bits(stored));
    }
#pragma unroll 1
    for (int step = 16; step; step /= 2) {
      float score = __shfl_down_sync(WARP, best.score, step);
      int class_id = __shfl_down_sync(WARP, best.class_id, step);
      consider(best, score, class_id, __shfl_down_sync(WARP, best.bits, step));
    }
    // Objectness * class is a float32 whatever the head is, and never below 0.
    bool reaches = OBJECTNESS ? (best.score < 0 ? 0 : best.score) >= head.threshold
                              : Kind::reaches(best.score, best.bits, head);
    if (lane == 0 && reaches) keep<Kind>(results, head, box, best, row, 1);
  }
}

#define FILTER(name, call)                                                        \
  extern "C" __global__ void name(const void *tensor, void *results, Head head) { \
    call(tensor, results, head);                                                  \
  }
FILTER(filter_columns_float32, filter_columns<Float32>)
FILTER(filter_columns_float16, filter_columns<Float16>)
FILTER(filter_rows_float32, (filter_rows<Float32, false>))
FILTER(filter_rows_float16, (filter_rows<Float16, false>))
FILTER(filter_objectness_float32, (filter_rows<Float32, true>))
FILTER(filter_objectness_float16, (filter_rows<Float16, true>))

// --- candidates -> the boxes that stay --------------------------------------------------------------------------------

#define MOST_SUPPRESSED 1024  // candidates of a place; in gpu/filter.py

// SUPPRESSION in gpu/filter.py.
struct Suppression {
  int most, keep;  // candidates that a place has room for, at most MOST_SUPPRESSED; boxes that stay
  double share;    // threshold / (1 + threshold): IoU > threshold means shared > share * (area + other area)
};

struct Crowd {
  float scores[MOST_SUPPRESSED], corners[MOST_SUPPRESSED][4];
  int boxes[MOST_SUPPRESSED], classes[MOST_SUPPRESSED];
  short order[MOST_SUPPRESSED];
  Byte alive[MOST_SUPPRESSED];
  int next;
};

// Best first, NaN last, equal ones as they lie in the head: numpy.lexsort.
static __device__ bool before(const Crowd &crowd, int a, int b) {
  float first = crowd.scores[a], second = crowd.scores[b];
  bool tie = first == second || (first != first && second != second);
  return tie ? crowd.boxes[a] < crowd.boxes[b] : first > second || second != second;
}

static __device__ double area_share(const float *box, double share) {
  return __dmul_rn(__dmul_rn(share, __dsub_rn(box[2], box[0])), __dsub_rn(box[3], box[1]));
}

// Greedy, class by class, in double and step by step as postprocess/detect.py does it: few pairs, each against a box
// that stays. Of places with more candidates than there was room for nothing stays.
extern "C" __global__ void suppress(const void *picked, void *results, Suppression rules) {
  __shared__ Crowd crowd;
  int place = blockIdx.z, thread = threadIdx.y * TILE_WIDTH + threadIdx.x, threads = TILE_WIDTH * TILE_HEIGHT;
  int count = ((const int *)picked)[place], kept = 0;
  int *counts = (int *)results, *stays = counts + gridDim.z;
  const Candidate *candidates = (const Candidate *)((const int *)picked + gridDim.z) + (long long)place * rules.most;
  Candidate *left = (Candidate *)(stays + gridDim.z) + (long long)place * rules.keep;
  int used = count > rules.most ? 0 : count;
  for (int i = thread; i < used; i += threads) {
    crowd.scores[i] = candidates[i].score;
    crowd.boxes[i] = candidates[i].box;
  }
  __syncthreads();
  for (int i = thread; i < used; i += threads) {
    int rank = 0;
    for (int other = 0; other < used; ++other) rank += before(crowd, other, i);
    crowd.order[rank] = i;
  }
  __syncthreads();
  for (int i = thread; i < used; i += threads) {
    Candidate one = candidates[crowd.order[i]];
    float half_width = __fmul_rn(one.width, 0.5f), half_height = __fmul_rn(one.height, 0.5f);
    float *corners = crowd.corners[i];
    corners[0] = __fadd_rn(one.centre_x, -half_width), corners[1] = __fadd_rn(one.centre_y, -half_height);
    corners[2] = __fadd_rn(one.centre_x, half_width), corners[3] = __fadd_rn(one.centre_y, half_height);
    crowd.classes[i] = one.class_id;
    bool finite = true;
    for (int k = 0; k < 4; ++k) finite = finite && fabsf(corners[k]) <= 3.402823466e38f;
    crowd.alive[i] = finite;
  }
  __syncthreads();
  for (int i = 0; kept < rules.keep; ++i) {
    if (thread == 0) crowd.next = used;
    __syncthreads();
    for (int other = i + thread; other < used; other += threads) {
      if (!crowd.alive[other]) continue;
      atomicMin(&crowd.next, other);
      break;
    }
    __syncthreads();
    i = crowd.next;
    if (i >= used) break;
    if (thread == 0) left[kept] = candidates[crowd.order[i]];
    ++kept;
    const float *box = crowd.corners[i];
    double share = area_share(box, rules.share);
    for (int other = i + 1 + thread; other < used; other += threads) {
      if (!crowd.alive[other] || crowd.classes[other] != crowd.classes[i]) continue;
      const float *rival = crowd.corners[other];
      double width = __dsub_rn(min(box[2], rival[2]), max(box[0], rival[0]));
      double height = __dsub_rn(min(box[3], rival[3]), max(box[1], rival[1]));
      double shared = __dmul_rn(width > 0 ? width : 0, height > 0 ? height : 0);
      if (shared > __dadd_rn(share, area_share(rival, rules.share))) crowd.alive[other] = 0;
    }
    __syncthreads();
  }
  if (thread == 0) {
    counts[place] = count;
    stays[place] = kept;
  }
}
