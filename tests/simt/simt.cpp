// simt.cpp: the machine of the emulation: fibers, shared memory, barriers, asynchronous copies, matrix instructions. See cuda/emulate.h.
#include <setjmp.h>
#include <stdarg.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "cuda/sm90.cuh"

dim3 gridDim, blockDim, blockIdx, threadIdx;

namespace simt {
namespace {

constexpr size_t kStack = 96 << 10;
uint32_t base = 1024;  // address of a block's first byte of shared memory: 1024 from sm_80 on, which keeps a kilobyte for itself, 0 before

enum Timing { kEager, kLazy, kRandom };
Timing timing = kEager;
uint32_t seed = 1;
uint32_t random_number() {
  seed = seed * 1664525u + 1013904223u;
  return seed >> 8;
}

struct Copy {
  uint32_t dst;
  const void* src;
  int bytes, filled;
};
struct MatrixOp {
  Type type;
  int n;
  uint64_t a, b;
  int accumulate, arrived;
  float* d[128];
};
struct WarpGroup {
  std::deque<MatrixOp> ops;
  size_t first = 0, executed = 0;  // indices since the start; ops[0] has index `first`
  size_t issued[128] = {}, wanted[128] = {};
  std::vector<size_t> groups[128];
};
struct Warp {
  const char* what;
  void* args[32];
  int arrived = 0;
  unsigned generation = 0;
};
struct Block {
  std::vector<uint8_t> memory;
  unsigned index, rank, threads, running, arrived = 0, generation = 0;
  std::vector<Warp> warps;
  std::vector<WarpGroup> groups;
};
struct Fiber {
  Block* block;
  unsigned thread;
  bool started = false, done = false;
  bool (*ready)(void*) = nullptr;
  void* state = nullptr;
  jmp_buf resume;
  ucontext_t context;
  std::vector<Copy> copies;                   // not committed
  std::deque<std::vector<Copy>> copy_groups;  // oldest first
  std::vector<std::function<void()>> stores;  // TMA stores, not committed
  std::deque<std::vector<std::function<void()>>> store_groups;
  unsigned cluster_phase = 0;
};

std::vector<std::unique_ptr<Block>> blocks;  // of the cluster
std::vector<std::unique_ptr<Fiber>> fibers;
std::vector<std::function<void()>> pending;  // loads that TMA has not made yet
Fiber* current;
jmp_buf scheduler;
std::string error;
void (*kernel_body)(void*);
void* kernel_state;
unsigned cluster_arrived, cluster_generation, cluster_running;

char* stacks(size_t i) {
  static char* memory = nullptr;
  static constexpr size_t kMost = 16 * 512;
  if (!memory)
    memory = static_cast<char*>(mmap(nullptr, kMost * kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  return memory + i * kStack;
}

void release_barriers(Block& b) {  // a thread that has ended is not waited for
  if (b.running && b.arrived >= b.running) b.arrived = 0, ++b.generation;
}

void entry() {
  kernel_body(kernel_state);
  Fiber& f = *current;
  f.done = true;
  if (!f.store_groups.empty() || !f.stores.empty()) fail("a thread ended before its TMA stores had read shared memory");
  if (!f.copy_groups.empty() || !f.copies.empty()) f.copies.clear(), f.copy_groups.clear();
  --f.block->running, --cluster_running;
  release_barriers(*f.block);
  _longjmp(scheduler, 1);
}

__attribute__((noinline)) void resume(Fiber& f) {
  current = &f;
  threadIdx = dim3(f.thread);
  blockIdx.x = f.block->index;
  if (_setjmp(scheduler)) return;
  if (f.started) _longjmp(f.resume, 1);
  f.started = true;
  setcontext(&f.context);
}

// getcontext returns twice, as it were: nobody's variables may live across it.
__attribute__((noinline)) void prepare(Fiber& f, size_t i) {
  getcontext(&f.context);
  f.context.uc_stack.ss_sp = stacks(i), f.context.uc_stack.ss_size = kStack, f.context.uc_link = nullptr;
  makecontext(&f.context, entry, 0);
}

bool run_one_pending() {
  if (pending.empty()) return false;
  const size_t i = timing == kRandom ? random_number() % pending.size() : 0;
  const auto f = pending[i];
  pending.erase(pending.begin() + static_cast<long>(i));
  f();
  return true;
}

void run_cluster() {
  std::vector<size_t> order(fibers.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  size_t alive = fibers.size();
  while (alive && error.empty()) {
    if (timing == kRandom)  // whole warps in random order; what happens within one is in lockstep enough
      for (size_t w = order.size() / 32; w > 1; --w) {
        const size_t other = random_number() % w;
        if (other != w - 1)
          std::swap_ranges(order.begin() + static_cast<long>(32 * other), order.begin() + static_cast<long>(32 * other + 32),
                           order.begin() + static_cast<long>(32 * (w - 1)));
      }
    bool progress = false;
    for (const size_t i : order) {
      Fiber& f = *fibers[i];
      if (f.done) continue;
      if (f.ready) {
        current = &f;
        if (!f.ready(f.state)) continue;
      }
      if (timing == kRandom && random_number() % 8 == 0) {  // not this time
        progress = true;
        continue;
      }
      f.ready = nullptr;
      resume(f);
      progress = true;
      alive -= f.done;
      if (!error.empty()) return;
    }
    if (timing == kRandom && random_number() % 4 == 0) progress |= run_one_pending();
    if (!progress && !run_one_pending()) {
      std::string where;
      for (const auto& f : fibers)
        if (!f->done && where.size() < 200) where += " " + std::to_string(f->block->index) + ":" + std::to_string(f->thread);
      error = "deadlock: nobody can go on; waiting (block:thread)" + where;
    }
  }
}

}  // namespace

void wait(bool (*ready)(void*), void* state) {
  Fiber& f = *current;
  f.ready = ready, f.state = state;
  if (!_setjmp(f.resume)) _longjmp(scheduler, 1);
  blockIdx.x = f.block->index;
}

void fail(const char* format, ...) {
  char text[512];
  va_list args;
  va_start(args, format);
  vsnprintf(text, sizeof text, format, args);
  va_end(args);
  if (error.empty())
    error = std::string(text) + " (block " + std::to_string(current->block->index) + ", thread " + std::to_string(current->thread) + ")";
  _longjmp(scheduler, 1);
}

void collect(const char* what, void* mine, void (*f)(void* const*)) {
  Warp& w = current->block->warps[current->thread / 32];
  if (w.arrived && w.what != what && std::strcmp(w.what, what)) fail("lanes of a warp are at %s and at %s", w.what, what);
  w.what = what;
  w.args[current->thread % 32] = mine;
  if (++w.arrived == 32) {
    w.arrived = 0, ++w.generation;
    f(w.args);
    return;
  }
  const unsigned generation = w.generation;
  wait_until([&w, generation] { return w.generation != generation; });
}

uint8_t* shared_base() { return current->block->memory.data() + base; }
uint32_t shared_offset(const void* p) { return static_cast<uint32_t>(static_cast<const uint8_t*>(p) - current->block->memory.data()); }
static uint8_t* shared_of(Block& b, uint32_t address, int bytes) {
  if (address < base || address + static_cast<uint32_t>(bytes) > b.memory.size())
    fail("shared memory at %u, %d bytes, of %zu", address, bytes, b.memory.size());
  return b.memory.data() + address;
}
uint8_t* shared(uint32_t address, int bytes) { return shared_of(*current->block, address, bytes); }

// --- barriers ----------------------------------------------------------------------------------------------------------------------------

struct Barrier {  // the eight bytes of an mbarrier
  int32_t bytes;
  uint16_t missing;
  uint16_t count_phase;  // 15 bits, 1 bit
};
static void settle(Barrier& b) {
  if (b.missing || b.bytes) return;
  b.missing = b.count_phase >> 1;
  b.count_phase ^= 1;
}
static Barrier& barrier_at(Block& block, uint32_t bar) {
  if (bar % 8) fail("a barrier at %u", bar);
  return *reinterpret_cast<Barrier*>(shared_of(block, bar, 8));
}
void barrier_init(uint32_t bar, uint32_t count) {
  barrier_at(*current->block, bar) = {0, static_cast<uint16_t>(count), static_cast<uint16_t>(count << 1)};
}
void barrier_arrive(uint32_t bar, uint32_t bytes) {
  Barrier& b = barrier_at(*current->block, bar);
  if (!b.missing) fail("an arrival too many at the barrier at %u", bar);
  b.bytes += static_cast<int32_t>(bytes);
  --b.missing;
  settle(b);
}
void barrier_wait(uint32_t bar, uint32_t parity) {
  Barrier* b = &barrier_at(*current->block, bar);
  wait_until([b, parity] { return (b->count_phase & 1u) != parity; });
}
void cluster_arrive() {
  current->cluster_phase = cluster_generation;
  if (++cluster_arrived >= cluster_running) cluster_arrived = 0, ++cluster_generation;
}
void cluster_wait() {
  const unsigned phase = current->cluster_phase;
  wait_until([phase] { return cluster_generation != phase; });
}
int cluster_rank() { return static_cast<int>(current->block->rank); }
uint8_t* cluster_shared(uint32_t address, int rank, int bytes) { return shared_of(*blocks[static_cast<size_t>(rank)], address, bytes); }

// --- copies ------------------------------------------------------------------------------------------------------------------------------

static void make(const Copy& c) {
  if (c.dst % static_cast<uint32_t>(c.filled) || reinterpret_cast<uintptr_t>(c.bytes ? c.src : nullptr) % static_cast<uintptr_t>(c.filled))
    fail("cp.async of %d bytes is not aligned", c.filled);
  uint8_t* dst = shared(c.dst, c.filled);
  std::memset(dst, 0, static_cast<size_t>(c.filled));
  if (c.bytes) std::memcpy(dst, c.src, static_cast<size_t>(c.bytes));
}
void copy_later(uint32_t dst, const void* src, int bytes, int filled) {
  const Copy c{dst, src, bytes, filled};
  if (timing == kEager) make(c);
  else current->copies.push_back(c);
}
void copy_commit() { current->copy_groups.push_back(std::move(current->copies)), current->copies.clear(); }
void copy_wait(int left) {
  auto& groups = current->copy_groups;
  for (; groups.size() > static_cast<size_t>(left); groups.pop_front())
    for (const Copy& c : groups.front()) make(c);
}

static uint32_t swizzle(uint32_t address, int span) { return address ^ ((address >> 7 & (span == 128 ? 7 : 3)) << 4); }

// The elements of a box one after another: their address in global memory (null outside of the tensor) and in shared memory.
template <class F>
static void walk(const CUtensorMap& m, uint32_t at, const int (&c)[4], int dw, int dh, F f) {
  const int e = m.element_bytes(), span = m.swizzle_bytes();
  const char* base = static_cast<const char*>(m.base);
  auto address = [&](int64_t i0, int64_t i1, int64_t i2, int64_t i3) -> char* {
    const int64_t i[4] = {i0, i1, i2, i3};
    int64_t offset = i0 * e;
    for (int d = 0; d < m.rank; ++d) {
      if (i[d] < 0 || i[d] >= static_cast<int64_t>(m.dim[d])) return nullptr;
      if (d) offset += i[d] * static_cast<int64_t>(m.stride[d - 1]);
    }
    return const_cast<char*>(base) + offset;
  };
  uint32_t row = 0;
  auto one_row = [&](int64_t i1, int64_t i2, int64_t i3) {
    for (uint32_t i = 0; i < m.box[0]; ++i)
      f(address(c[0] + static_cast<int>(i), i1, i2, i3),
        swizzle(at + row * static_cast<uint32_t>(span) + i * static_cast<uint32_t>(e), span), e);
    ++row;
  };
  if (!m.im2col) {
    const uint32_t b1 = m.rank > 1 ? m.box[1] : 1, b2 = m.rank > 2 ? m.box[2] : 1, b3 = m.rank > 3 ? m.box[3] : 1;
    for (uint32_t k = 0; k < b3; ++k)
      for (uint32_t j = 0; j < b2; ++j)
        for (uint32_t i = 0; i < b1; ++i) one_row(c[1] + static_cast<int>(i), c[2] + static_cast<int>(j), c[3] + static_cast<int>(k));
    return;
  }
  int64_t w = c[1], h = c[2], n = c[3];
  const int64_t last_w = static_cast<int64_t>(m.dim[1]) - 1 + m.upper[0], last_h = static_cast<int64_t>(m.dim[2]) - 1 + m.upper[1];
  if (w < m.lower[0] || w > last_w || h < m.lower[1] || h > last_h) fail("im2col starts at (%d, %d), outside of its box", c[1], c[2]);
  for (uint32_t i = 0; i < m.box[1]; ++i) {
    one_row(w + dw, h + dh, n);
    w += m.step[0];
    if (w > last_w) w = m.lower[0], h += m.step[1];
    if (h > last_h) h = m.lower[1], ++n;
  }
}
static uint32_t box_bytes(const CUtensorMap& m) {
  uint32_t bytes = static_cast<uint32_t>(m.element_bytes());
  for (int i = 0; i < (m.im2col ? 2 : m.rank); ++i) bytes *= m.box[i];
  return bytes;
}

static void complete(Block& block, uint32_t bar, uint32_t bytes) {
  Barrier& b = barrier_at(block, bar);
  b.bytes -= static_cast<int32_t>(bytes);
  settle(b);
}

void tma_load(uint32_t dst, const CUtensorMap* m, uint32_t bar, int c0, int c1, int c2, int c3, int dw, int dh) {
  if (dst % 128) fail("TMA to shared memory at %u", dst);
  Block* block = current->block;
  auto load = [=] {
    walk(*m, dst, {c0, c1, c2, c3}, dw, dh, [&](const char* from, uint32_t to, int e) {
      uint8_t* out = shared_of(*block, to, e);
      if (!from) {
        std::memset(out, 0, static_cast<size_t>(e));
      } else if (m->type == CUtensorMap::kTf32) {
        uint32_t v;
        std::memcpy(&v, from, 4);
        v = ck::cuda::to_tf32(v);
        std::memcpy(out, &v, 4);
      } else {
        std::memcpy(out, from, static_cast<size_t>(e));
      }
    });
    complete(*block, bar, box_bytes(*m));
  };
  if (timing == kEager) load();
  else pending.push_back(load);
}
void bulk_load(uint32_t dst, const void* src, uint32_t bytes, uint32_t bar) {
  if (dst % 16 || bytes % 16 || reinterpret_cast<uintptr_t>(src) % 16) fail("a bulk copy that is not aligned to 16 bytes");
  Block* block = current->block;
  auto load = [=] {
    std::memcpy(shared_of(*block, dst, static_cast<int>(bytes)), src, bytes);
    complete(*block, bar, bytes);
  };
  if (timing == kEager) load();
  else pending.push_back(load);
}
void tma_store(const CUtensorMap* m, uint32_t src, int c0, int c1, int c2, int c3) {
  if (src % 128) fail("TMA from shared memory at %u", src);
  Block* block = current->block;
  auto store = [=] {
    walk(*m, src, {c0, c1, c2, c3}, 0, 0, [&](char* to, uint32_t from, int e) {
      if (to) std::memcpy(to, shared_of(*block, from, e), static_cast<size_t>(e));
    });
  };
  if (timing == kEager) store();
  else current->stores.push_back(store);
}
void tma_commit() { current->store_groups.push_back(std::move(current->stores)), current->stores.clear(); }
void tma_wait_read(int left) {
  auto& groups = current->store_groups;
  for (; groups.size() > static_cast<size_t>(left); groups.pop_front())
    for (const auto& store : groups.front()) store();
}

// --- matrix instructions -----------------------------------------------------------------------------------------------------------------

static float value(Type type, const uint8_t* p) {
  uint32_t word = 0;
  if (type == kTf32) {
    std::memcpy(&word, p, 4);
    return __uint_as_float(word & ~uint32_t{0x1fff});
  }
  uint16_t bits;
  std::memcpy(&bits, p, 2);
  return type == kHalf ? ck::cuda::to_float(ck::cuda::Half{bits}) : ck::cuda::to_float(ck::cuda::Bfloat{bits});
}

void ldmatrix(uint32_t address, uint32_t* v) {
  struct Lane {
    uint32_t address, *v;
  } mine{address, v};
  collect("ldmatrix", &mine, [](void* const* lanes) {
    for (int i = 0; i < 4; ++i)
      for (int row = 0; row < 8; ++row) {
        const uint32_t from = static_cast<Lane*>(lanes[8 * i + row])->address;
        if (from % 16) fail("ldmatrix at %u", from);
        for (int j = 0; j < 4; ++j)
          std::memcpy(&static_cast<Lane*>(lanes[4 * row + j])->v[i], shared(from + 4 * static_cast<uint32_t>(j), 4), 4);
      }
  });
}
void stmatrix(uint32_t address, const uint32_t* v) {
  struct Lane {
    uint32_t address;
    const uint32_t* v;
  } mine{address, v};
  collect("stmatrix", &mine, [](void* const* lanes) {
    for (int i = 0; i < 4; ++i)
      for (int row = 0; row < 8; ++row) {
        const uint32_t to = static_cast<Lane*>(lanes[8 * i + row])->address;
        if (to % 16) fail("stmatrix at %u", to);
        for (int j = 0; j < 4; ++j)
          std::memcpy(shared(to + 4 * static_cast<uint32_t>(j), 4), &static_cast<Lane*>(lanes[4 * row + j])->v[i], 4);
      }
  });
}

void mma(Type type, float* d, const uint32_t* a, const uint32_t* b) {
  struct Lane {
    Type type;
    float* d;
    const uint32_t *a, *b;
  } mine{type, d, a, b};
  collect("mma", &mine, [](void* const* lanes) {
    const Type type = static_cast<Lane*>(lanes[0])->type;
    const int e = type == kTf32 ? 4 : 2, depth = 32 / e;
    float x[16][16], y[16][8];  // [row][k], [k][column]
    for (int k = 0; k < depth; ++k) {
      const int byte = k * e, word = byte % 16 / 4, part = byte % 4;
      for (int row = 0; row < 16; ++row)
        x[row][k] = value(
            type, reinterpret_cast<const uint8_t*>(&static_cast<Lane*>(lanes[row % 8 * 4 + word])->a[row / 8 + byte / 16 * 2]) + part);
      for (int column = 0; column < 8; ++column)
        y[k][column] = value(type, reinterpret_cast<const uint8_t*>(&static_cast<Lane*>(lanes[column * 4 + word])->b[byte / 16]) + part);
    }
    for (int row = 0; row < 16; ++row) {
      float sum[8] = {};
      for (int k = 0; k < depth; ++k)
        for (int column = 0; column < 8; ++column) sum[column] += x[row][k] * y[k][column];
      for (int column = 0; column < 8; ++column)
        static_cast<Lane*>(lanes[row % 8 * 4 + column / 2])->d[row / 8 * 2 + column % 2] += sum[column];
    }
  });
}

// The address of byte `byte` of row `row` of an operand.
static uint32_t operand(uint64_t descriptor, int row, int byte) {
  const uint32_t start = static_cast<uint32_t>(descriptor & 0x3FFF) << 4, lbo = static_cast<uint32_t>(descriptor >> 16 & 0x3FFF) << 4;
  const uint32_t sbo = static_cast<uint32_t>(descriptor >> 32 & 0x3FFF) << 4, layout = static_cast<uint32_t>(descriptor >> 62);
  const uint32_t r = static_cast<uint32_t>(row), b = static_cast<uint32_t>(byte);
  if (layout == 0) return start + r / 8 * sbo + b / 16 * lbo + r % 8 * 16 + b % 16;
  const int span = layout == 1 ? 128 : 64;
  return swizzle(start + r / 8 * sbo + r % 8 * static_cast<uint32_t>(span) + b, span);
}

static void execute(const MatrixOp& op) {
  const int e = op.type == kTf32 ? 4 : 2, depth = 32 / e;
  static float a[64][16], b[16][256], d[256];
  for (int k = 0; k < depth; ++k) {
    for (int row = 0; row < 64; ++row) a[row][k] = value(op.type, shared(operand(op.a, row, k * e), e));
    for (int column = 0; column < op.n; ++column) b[k][column] = value(op.type, shared(operand(op.b, column, k * e), e));
  }
  for (int row = 0; row < 64; ++row) {
    std::fill(d, d + op.n, 0.f);
    for (int k = 0; k < depth; ++k)
      for (int column = 0; column < op.n; ++column) d[column] += a[row][k] * b[k][column];
    for (int column = 0; column < op.n; ++column) {
      float& out = op.d[row / 16 * 32 + row % 8 * 4 + column % 8 / 2][column / 8 * 4 + row % 16 / 8 * 2 + column % 2];
      out = op.accumulate ? out + d[column] : d[column];
    }
  }
}
static WarpGroup& warp_group() { return current->block->groups[current->thread / 128]; }
static void execute_up_to(WarpGroup& g, size_t end) {
  for (; g.executed < end; ++g.executed) {
    if (g.ops.front().arrived != 128) fail("a wait for a wgmma that not all of the warpgroup have issued");
    execute(g.ops.front());
    g.ops.pop_front(), ++g.first;
  }
}
void wgmma(Type type, int n, float* d, uint64_t a, uint64_t b, int accumulate) {
  WarpGroup& g = warp_group();
  const unsigned t = current->thread % 128;
  const size_t i = g.issued[t]++ - g.first;
  if (i == g.ops.size()) g.ops.push_back({type, n, a, b, accumulate != 0, 0, {}});
  MatrixOp& op = g.ops[i];
  if (op.a != a || op.b != b || op.n != n || op.accumulate != (accumulate != 0)) fail("the lanes of a warpgroup disagree about a wgmma");
  op.d[t] = d;
  ++op.arrived;
  if (timing == kEager && op.arrived == 128) execute_up_to(g, g.first + i + 1);
}
void wgmma_commit() { warp_group().groups[current->thread % 128].push_back(warp_group().issued[current->thread % 128]); }
void wgmma_wait(int left) {
  WarpGroup& g = warp_group();
  const unsigned t = current->thread % 128;
  auto& mine = g.groups[t];
  if (mine.size() <= static_cast<size_t>(left)) return;
  const size_t target = mine[mine.size() - 1 - static_cast<size_t>(left)];
  mine.erase(mine.begin(), mine.end() - left);
  g.wanted[t] = std::max(g.wanted[t], target);
  const size_t all = *std::min_element(g.wanted, g.wanted + 128);
  if (all > g.executed) execute_up_to(g, all);
  wait_until([&g, target] { return g.executed >= target; });
}

// --- launches ----------------------------------------------------------------------------------------------------------------------------

cudaError_t run(dim3 grid, dim3 block, int64_t bytes, int cluster, void (*body)(void*), void* state) {
  error.clear();
  kernel_body = body, kernel_state = state;
  gridDim = grid, blockDim = block;
  if (bytes > ck::cuda::kSm90Shared || block.x > 1024 || block.y * block.z != 1 || grid.x % static_cast<unsigned>(cluster) ||
      grid.y > 65535 || grid.z > 65535)
    return cudaErrorInvalidValue;
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned first = 0; first < grid.x && error.empty(); first += static_cast<unsigned>(cluster)) {
        blockIdx = dim3(first, y, z);
        blocks.clear(), fibers.clear(), pending.clear();
        cluster_arrived = 0, cluster_running = static_cast<unsigned>(cluster) * block.x;
        for (unsigned r = 0; r < static_cast<unsigned>(cluster); ++r) {
          auto b = std::make_unique<Block>();
          b->memory.assign(base + static_cast<size_t>(bytes), 0xff);  // garbage: floats are NaN
          b->index = first + r, b->rank = r, b->threads = b->running = block.x;
          b->warps.resize((block.x + 31) / 32), b->groups.resize((block.x + 127) / 128);
          for (unsigned t = 0; t < block.x; ++t) {
            auto f = std::make_unique<Fiber>();
            f->block = b.get(), f->thread = t;
            prepare(*f, fibers.size());
            fibers.push_back(std::move(f));
          }
          blocks.push_back(std::move(b));
        }
        run_cluster();
      }
  return error.empty() ? cudaSuccess : cudaErrorUnknown;
}

}  // namespace simt

void __syncthreads() {
  simt::Block& b = *simt::current->block;
  const unsigned generation = b.generation;
  ++b.arrived;
  simt::release_barriers(b);
  simt::wait_until([&b, generation] { return b.generation != generation; });
}

namespace ck::cuda {

float to_float(Half v) {
  const uint32_t sign = uint32_t{v.bits} >> 15 << 31, exponent = v.bits >> 10 & 31, mantissa = v.bits & 1023;
  if (exponent == 31) return __uint_as_float(sign | 0x7f800000 | mantissa << 13);
  if (exponent) return __uint_as_float(sign | (exponent + 112) << 23 | mantissa << 13);
  const float small = static_cast<float>(mantissa) * 0x1p-24f;
  return sign ? -small : small;
}
template <>
Half from_float<Half>(float v) {
  const uint32_t sign = __float_as_uint(v) >> 16 & 0x8000;
  const float a = std::fabs(v);
  if (v != v) return {0x7fff};
  if (a >= 65520.f) return {static_cast<uint16_t>(sign | 0x7c00)};
  if (a < 0x1p-14f) return {static_cast<uint16_t>(sign | static_cast<uint32_t>(std::nearbyint(a * 0x1p24f)))};
  const uint32_t bits = __float_as_uint(a);
  return {static_cast<uint16_t>(sign | (((bits + 0xfff + (bits >> 13 & 1)) >> 13) - (112u << 10)))};
}

}  // namespace ck::cuda

extern "C" {
void simt_timing(int kind, unsigned s) { simt::timing = static_cast<simt::Timing>(kind), simt::seed = s * 2654435761u + 1; }
void simt_base(uint32_t base) { simt::base = base; }
const char* simt_error() { return simt::error.c_str(); }
}
