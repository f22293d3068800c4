// A stand-in for a GPU: what edgeapp.cu uses of CUDA, in C++. It shows whether the kernels' arithmetic and their order
// of steps are right, block after block on one core; not whether they run, or how fast, on a GPU.
//
// A thread of a block is a fiber: it runs until it waits for the others at a barrier. Jumps change between fibers:
// setcontext, which begins them, is a system call.

#pragma once

#include <math.h>
#include <setjmp.h>
#include <stdint.h>
#include <string.h>
#include <ucontext.h>

#include <algorithm>
#include <vector>

#define __global__
#define __device__
#define __shared__ static

using std::max;
using std::min;

struct Index {
  unsigned x, y, z;
};
static Index threadIdx, blockIdx, gridDim;

// --- fibers ---------------------------------------------------------------------------------------------------------

struct Barrier {
  int size, arrived, round;
};

static const int BLOCK_WIDTH = 32, BLOCK_HEIGHT = 8, BLOCK = BLOCK_WIDTH * BLOCK_HEIGHT, STACK = 1 << 16;
static ucontext_t fibers[BLOCK];
static jmp_buf scheduler, waiting[BLOCK];
static enum { NEW, BEGUN, DONE } states[BLOCK];
static std::vector<char> stacks(BLOCK *STACK);
static Barrier block_barrier, warp_barriers[BLOCK_HEIGHT];
static uint32_t exchanged[BLOCK_HEIGHT][BLOCK_WIDTH];
static void (*body)(void *);
static void *body_arguments;

static void wait_at(Barrier &barrier) {
  int round = barrier.round;
  if (++barrier.arrived == barrier.size) {
    barrier.arrived = 0;
    ++barrier.round;
  }
  int self = threadIdx.y * BLOCK_WIDTH + threadIdx.x;
  while (barrier.round == round)
    if (_setjmp(waiting[self]) == 0) _longjmp(scheduler, 1);
}

static void fiber(int self) {
  body(body_arguments);
  states[self] = DONE;
  _longjmp(scheduler, 1);
}

static void go_on(int i) {
  if (_setjmp(scheduler) != 0) return;
  if (states[i] == BEGUN) _longjmp(waiting[i], 1);
  states[i] = BEGUN;
  setcontext(&fibers[i]);
}

static void run_block() {
  block_barrier = {BLOCK, 0, 0};
  for (int warp = 0; warp < BLOCK_HEIGHT; ++warp) warp_barriers[warp] = {BLOCK_WIDTH, 0, 0};
  for (int i = 0; i < BLOCK; ++i) {
    states[i] = NEW;
    getcontext(&fibers[i]);
    fibers[i].uc_stack.ss_sp = &stacks[i * STACK];
    fibers[i].uc_stack.ss_size = STACK;
    fibers[i].uc_link = nullptr;
    makecontext(&fibers[i], (void (*)())fiber, 1, i);
  }
  for (bool busy = true; busy;) {
    busy = false;
    for (int i = 0; i < BLOCK; ++i) {
      if (states[i] == DONE) continue;
      busy = true;
      threadIdx = {unsigned(i % BLOCK_WIDTH), unsigned(i / BLOCK_WIDTH), 0};
      go_on(i);
    }
  }
}

static void run_grid(const int *grid, void (*kernel)(void *), void *arguments) {
  body = kernel;
  body_arguments = arguments;
  gridDim = {unsigned(grid[0]), unsigned(grid[1]), unsigned(grid[2])};
  for (blockIdx.z = 0; blockIdx.z < gridDim.z; ++blockIdx.z)
    for (blockIdx.y = 0; blockIdx.y < gridDim.y; ++blockIdx.y)
      for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x) run_block();
}

// --- what threads tell each other -------------------------------------------------------------------------------------

static void __syncthreads() { wait_at(block_barrier); }

template <typename T> static T __shfl_down_sync(unsigned, T value, int step) {
  static_assert(sizeof(T) == 4, "");
  int warp = threadIdx.y, lane = threadIdx.x;
  memcpy(&exchanged[warp][lane], &value, 4);
  wait_at(warp_barriers[warp]);
  if (lane + step < BLOCK_WIDTH) memcpy(&value, &exchanged[warp][lane + step], 4);
  wait_at(warp_barriers[warp]);
  return value;
}

static unsigned __ballot_sync(unsigned, bool vote) {
  int warp = threadIdx.y;
  exchanged[warp][threadIdx.x] = vote;
  wait_at(warp_barriers[warp]);
  unsigned votes = 0;
  for (int lane = 0; lane < BLOCK_WIDTH; ++lane) votes |= exchanged[warp][lane] << lane;
  wait_at(warp_barriers[warp]);
  return votes;
}

static int atomicAdd(int *at, int value) {
  int before = *at;
  *at += value;
  return before;
}

static int atomicMin(int *at, int value) {
  int before = *at;
  *at = min(before, value);
  return before;
}

// --- numbers ----------------------------------------------------------------------------------------------------------

static float __fadd_rn(float a, float b) { return a + b; }
static float __fmul_rn(float a, float b) { return a * b; }
static double __dadd_rn(double a, double b) { return a + b; }
static double __dsub_rn(double a, double b) { return a - b; }
static double __dmul_rn(double a, double b) { return a * b; }
static int __ffs(int bits) { return __builtin_ffs(bits); }
static int __clzll(long long bits) { return __builtin_clzll(bits); }

static unsigned __float_as_uint(float value) {
  unsigned bits;
  memcpy(&bits, &value, 4);
  return bits;
}

static float __int_as_float(int bits) {
  float value;
  memcpy(&value, &bits, 4);
  return value;
}

// IEEE 754 binary16, to nearest, ties to even.
static unsigned short half_of(float value) {
  unsigned sign = __float_as_uint(value) >> 16 & 0x8000;
  float size = fabsf(value);
  if (size != size) return sign | 0x7e00;
  if (size >= 65520) return sign | 0x7c00;
  if (size < 1.0f / 16384) return sign | (unsigned)nearbyintf(size * (1 << 24));
  unsigned bits = __float_as_uint(size) - (112u << 23);
  return sign | (bits + 0xfff + (bits >> 13 & 1)) >> 13;
}

static float float_of(unsigned short half) {
  int sign = (half & 0x8000) << 16, size = half & 0x7fff;
  if (size >= 0x7c00) return __int_as_float(sign | 0x7f800000 | size << 13);
  float value = size < 0x400 ? size / float(1 << 24) : __int_as_float((size << 13) + (112 << 23));
  return sign ? -value : value;
}
