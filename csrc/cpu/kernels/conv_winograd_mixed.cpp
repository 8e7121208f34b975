// conv_winograd_mixed.cpp: stride 1 3x3 convolution by Winograd's F(4x4, 3x3), its last tiles F(2x2, 3x3), from the weights as they are; float32.
//
// A 14x14 map is 4 + 4 + 4 + 2 wide. Tiles of 2 take four of the six points (winograd.h's Half), so one U = G g G' serves all: 484 products an
// image and pair of channel and filter where tiles of 4 alone take 576, tiles of 2 784 and the filter 1764.
// U is four times the weights. conv_winograd.cpp packs it and reads it from the third-level cache or from memory, which is slow where few tiles
// share it; here the weights come from there and U is made of them on the way, a row of products at a time, and stays in the caches:
//
//     weights [c][3x3]  --  row i of G g G': 6 products of kDepth channels  --  x  V [i][6][tile][c]  --  chain.h, one product at a time -->  M
//
// Computes  Y = A' [ sum_c (G g_c G') . (B' d_c B) ] A, then the epilogue. G holds the powers of the points, their scale has gone into A'
// Layout    x NHWC, y NPQK; weights [panel][row of the filter][c][3][nv * kLanes]; V [6][6][tile][c], M [panel][6][6][tile][nv * kLanes]
// Tiling    a task is a block of tiles times a group of panels. Tiles lie in V in the order of their kinds, so that those that take part in a
//           product lie together: all in 16 of them, those with 4 rows (or columns) in 8, those with both in 4. Blocks run across images.
// Cost      2*484/1764*9*NPQKC flop at 14x14; U: 3.5 to 5 cycles a line, for each block; the transforms of conv_winograd
// Refuses   what conv_winograd refuses, but not lean
// Tried     (14x14, Granite Rapids, November 2026) U packed: N=8 6.9 ms for 512 channels in place of 7.6, N=1 2.1 in place of 1.15
//           half of G applied at plan time (twice the weights, a third of the loads): N=8 the same, N=1 slower: more comes from far
//           three products at a time: weights are read twice as often; 16, 32, 128, 256 channels a chunk: 1 to 8 % slower
//           chunks outside rows (M goes to and fro for each chunk): 5 %; one panel a group where V is far: 5 %
// Source    as winograd.h
#include "core/machine.h"
#include "cpu/chain.h"
#include "cpu/winograd.h"

namespace ck {
namespace CK_ISA {
namespace {

constexpr int kIn = 6, kOut = 4, kProducts = kIn * kIn, kTaps = 9;
constexpr int kDepth = 64;  // channels of a chunk
constexpr int64_t kMaxBlock = 64, kMaxGroup = 4;
constexpr int64_t kPad = 3 * 16;                  // floats that keep the products off each other's cache sets
constexpr int kPasses[kIn] = {0, 5, 1, 2, 3, 4};  // over the rows of products: those that read one row of the filter first

struct Layout {
  int64_t rows, columns, tiles;  // tiles of one image
  int64_t block, blocks;         // tiles of a block at most, blocks of all images
  int64_t stride;                // floats from one tile of V to the next: off the powers of two
  int64_t v_step, m_step;        // floats from one product to the next
  Panels panels;
  int64_t group, groups;  // panels that share a task at most, groups of panels
};

CK_INLINE int64_t apart(int64_t floats) { return ceil_div(floats, 1024) * 1024 + kPad; }

// V stays in the second-level cache while panel after panel reads it, if that holds enough tiles to share U. If not, a group of panels reads
// each of its rows.
CK_INLINE Layout layout_of(const ConvProblem& p, int64_t images) {
  Layout l;
  l.rows = ceil_div(p.p, kOut);
  l.columns = ceil_div(p.q, kOut);
  l.tiles = l.rows * l.columns;
  l.stride = ceil_div(p.c, kLanes) * kLanes + kLanes;
  const int64_t near = l2_bytes * 3 / 5 / (kProducts * l.stride * 4), all = images * l.tiles;
  const bool far = near < least(all, kMaxBlock / 2);
  l.block = least(all, far ? kMaxBlock : least(near, kMaxBlock));
  l.blocks = most(1, ceil_div(all, l.block));
  l.blocks += l.blocks > 1 && l.blocks % 2;  // a block that two threads share is transformed by both
  l.v_step = apart(l.block * l.stride);
  l.panels = panels_of(p);
  l.m_step = apart(l.block * panel_width(l.panels, l.panels.count - 1) * kLanes);  // the last is the widest
  l.group = far ? kMaxGroup : 1;
  l.groups = ceil_div(l.panels.count, l.group);
  return l;
}

// A range of a block's tiles, cut into register tiles.
struct Range {
  int parts;
  uint8_t at[kMaxBlock + 1];
};

// The kinds of tiles by their outputs, rows x columns, in the order of V: 4x2, 4x4, 2x4, 2x2.
enum Kind { k4x2, k4x4, k2x4, k2x2, kKinds };

struct Block {
  int count;
  uint8_t position[kMaxBlock];       // of each tile in V and M
  Range ranges[kMaxVecs + 1][2][2];  // by vectors of the panel, product of tiles with 4 rows only, with 4 columns only
};

struct Place {
  int64_t n, row, column;  // of a tile's first output
  Kind kind;
};

CK_INLINE Place place_of(const ConvProblem& p, const Layout& l, int64_t tile) {
  const int64_t i = tile % l.tiles, row = i / l.columns * kOut, column = i % l.columns * kOut;
  const bool two_rows = p.p - row <= Half::kOut, two_columns = p.q - column <= Half::kOut;
  return {tile / l.tiles, row, column, two_rows ? (two_columns ? k2x2 : k2x4) : two_columns ? k4x2 : k4x4};
}

CK_INLINE void cut(Range& range, int from, int to, int size) {
  range.parts = static_cast<int>(ceil_div(to - from, size));
  for (int i = 0; i <= range.parts; ++i) range.at[i] = static_cast<uint8_t>(range.parts ? from + (to - from) * i / range.parts : from);
}

void arrange(const ConvProblem& p, const Layout& l, int64_t tile, int count, Block& b) {
  b.count = count;
  int from[kKinds + 1] = {}, next[kKinds];
  for (int t = 0; t < count; ++t) ++from[place_of(p, l, tile + t).kind + 1];
  for (int i = 0; i < kKinds; ++i) next[i] = from[i], from[i + 1] += from[i];
  for (int t = 0; t < count; ++t) b.position[t] = static_cast<uint8_t>(next[place_of(p, l, tile + t).kind]++);
  for (int vecs = 1; vecs <= kMaxVecs; ++vecs)
    for (int rows = 0; rows < 2; ++rows)
      for (int columns = 0; columns < 2; ++columns)
        cut(b.ranges[vecs][rows][columns], from[columns ? k4x4 : k4x2], from[rows ? k2x4 : columns ? k2x2 : kKinds], kTile[vecs]);
}

CK_INLINE bool beyond_half(int point) { return point == 3 || point == 4; }

template <class Rows, class Columns, bool kEdge, class IO>
CK_INLINE void scatter(const ConvProblem& p, const View& x, const float* x_n, int64_t h0, int64_t w0, float* v, int64_t v_step, IO io) {
  vf d[Rows::kIn * Columns::kIn];
  load_tile<Rows, Columns, kEdge>(p, x, x_n, h0, w0, d, io);
  CK_UNROLL
  for (int i = 0; i < Rows::kIn; ++i)
    CK_UNROLL
    for (int j = 0; j < Columns::kIn; ++j) store(v + (Rows::kAt[i] * kIn + Columns::kAt[j]) * v_step, d[i * Columns::kIn + j]);
}

template <class Rows, class Columns>
void transform_input(const ConvProblem& p, const ConvArgs& a, const Place& place, float* v, int64_t v_step) {
  const int64_t h0 = place.row - p.pad_h_lo, w0 = place.column - p.pad_w_lo;
  const bool inside = h0 >= 0 && w0 >= 0 && h0 + Rows::kIn <= p.h && w0 + Columns::kIn <= p.w;
  const float* x_n = at<const float>(a.x, place.n, 0, 0, 0);
  int64_t c = 0;
  for (; c + kLanes <= p.c; c += kLanes) {
    if (inside) scatter<Rows, Columns, false>(p, a.x, x_n + c, h0, w0, v + c, v_step, Full{});
    else scatter<Rows, Columns, true>(p, a.x, x_n + c, h0, w0, v + c, v_step, Full{});
  }
  if (c < p.c) scatter<Rows, Columns, true>(p, a.x, x_n + c, h0, w0, v + c, v_step, Part{static_cast<int>(p.c - c)});
}

void transform_inputs(const ConvProblem& p, const ConvArgs& a, const Layout& l, int64_t tile, const Block& b, float* v) {
  for (int t = 0; t < b.count; ++t) {
    const Place place = place_of(p, l, tile + t);
    float* v_t = v + b.position[t] * l.stride;
    switch (place.kind) {
      case k4x2: transform_input<Whole, Half>(p, a, place, v_t, l.v_step); break;
      case k4x4: transform_input<Whole, Whole>(p, a, place, v_t, l.v_step); break;
      case k2x4: transform_input<Half, Whole>(p, a, place, v_t, l.v_step); break;
      default: transform_input<Half, Half>(p, a, place, v_t, l.v_step);
    }
  }
}

// One row of U for some channels, its products u_step apart. w: the filters' rows are `row` floats apart.
constexpr int64_t u_step(int vecs) { return kDepth * vecs * kLanes + kPad; }

template <int kRow, int kVecs>
void build(const float* w, int64_t row, int64_t depth, float* u) {
  constexpr int64_t kWidth = kVecs * kLanes, kStep = u_step(kVecs);
  constexpr int kAhead = 4;
  for (int64_t c = 0; c < depth; ++c, w += 3 * kWidth, u += kWidth)
    CK_UNROLL
    for (int j = 0; j < kVecs * kLanes; j += kLanes) {
      if (j * 4 % 64 == 0) {
        CK_UNROLL
        for (int i = 0; i < kIn; ++i) __builtin_prefetch(u + i * kStep + kAhead * kWidth + j, 1);
      }
      const vf h0 = at_point<kRow>(w + j, row), h1 = at_point<kRow>(w + kWidth + j, row), h2 = at_point<kRow>(w + 2 * kWidth + j, row);
      float* out = u + j;
      store(out, h0);
      store(out + 5 * kStep, h2);
      const vf at_p = plus(h0, h2, kP2);
      store(out + kStep, plus(at_p, h1, kP));
      store(out + 2 * kStep, minus(at_p, h1, kP));
      const vf at_q = plus(h0, h2, kQ2);
      store(out + 3 * kStep, plus(at_q, h1, kQ));
      store(out + 4 * kStep, minus(at_q, h1, kQ));
    }
}

using BuildFn = void (*)(const float*, int64_t, int64_t, float*);
template <int kVecs>
constexpr BuildFn kBuilds[kIn] = {build<0, kVecs>, build<1, kVecs>, build<2, kVecs>, build<3, kVecs>, build<4, kVecs>, build<5, kVecs>};
CK_INLINE BuildFn build_fn(int vecs, int row) { return vecs == 1 ? kBuilds<1>[row] : vecs == 2 ? kBuilds<2>[row] : kBuilds<3>[row]; }

// What will be read next and comes from far: the row of the filters that the next panel, or the next pass, is the first to need.
struct Ahead {
  const float* from;
  int64_t floats;
};

CK_INLINE const float* panel_weights(const ConvProblem& p, const ConvArgs& a, const Layout& l, int64_t panel) {
  return static_cast<const float*>(a.weights) + panel_first(l.panels, panel) * kLanes * kTaps * p.c;
}

CK_INLINE Ahead ahead_of(const ConvProblem& p, const ConvArgs& a, const Layout& l, int pass, int64_t panel, int64_t from, int64_t to) {
  constexpr int kFirst[] = {0, 2, 1};  // the row of the filter that a pass is the first to read
  int row = pass;
  int64_t next = panel + 1;
  if (pass < 3 && next == to) row = pass + 1, next = from;
  if (row < 3) {
    const int64_t floats = 3 * panel_width(l.panels, next) * kLanes * p.c;
    return {panel_weights(p, a, l, next) + kFirst[row] * floats, floats};
  }
  // The rest brings the first row for the next group, in equal parts.
  next = to < l.panels.count ? to : 0;
  const int64_t floats = 3 * panel_width(l.panels, next) * kLanes * p.c, parts = 3 * (to - from), part = most(0, pass - 3) * (to - from) + panel - from;
  return {panel_weights(p, a, l, next) + floats * part / parts, pass < 3 ? 0 : floats / parts};
}

void run(const ConvProblem& p, const ConvArgs& a, int64_t images, int64_t first, int64_t last, void* scratch) {
  const Layout l = layout_of(p, images);
  float *v = static_cast<float*>(scratch), *m = v + kProducts * l.v_step, *u = m + l.group * kProducts * l.m_step;
  const int64_t tiles = images * l.tiles;
  int64_t transformed = -1;
  Block b;
  for (int64_t task = first; task < last; ++task) {
    const int64_t block = task / l.groups, group = task % l.groups, tile = tiles * block / l.blocks;
    if (block != transformed) {
      arrange(p, l, tile, static_cast<int>(tiles * (block + 1) / l.blocks - tile), b);
      transform_inputs(p, a, l, tile, b, v);
      transformed = block;
    }
    const int64_t from = l.panels.count * group / l.groups, to = l.panels.count * (group + 1) / l.groups;
    const auto products = [&](int64_t panel) { return m + (panel - from) * kProducts * l.m_step; };
    for (int pass = 0; pass < kIn; ++pass)
      for (int64_t panel = from; panel < to; ++panel) {
        const int i = kPasses[pass], vecs = panel_width(l.panels, panel);
        const int64_t width = vecs * kLanes, row = 3 * width * p.c;
        const auto& ranges = b.ranges[vecs][beyond_half(i)];
        const int64_t calls = 4 * ranges[0].parts + 2 * ranges[1].parts;
        if (!calls) continue;
        const Ahead ahead = ahead_of(p, a, l, pass, panel, from, to);
        const int64_t fetch_step = least(32, (ahead.floats * kQuad / (calls * p.c) + 15) / 16 * 16);
        const float* fetch = ahead.from;
        for (int64_t c = 0; c < p.c; c += kDepth) {
          const int64_t depth = least(kDepth, p.c - c);
          build_fn(vecs, i)(panel_weights(p, a, l, panel) + 3 * width * c, row, depth, u);
          for (int j = 0; j < kIn; ++j) {
            const Range& range = ranges[beyond_half(j)];
            const int product = i * kIn + j;
            for (int part = 0; part < range.parts; ++part, fetch += fetch_step * (depth / kQuad)) {
              const int t = range.at[part];
              chain_fn(vecs, range.at[part + 1] - t)({v + product * l.v_step + t * l.stride + c, l.stride, u + j * u_step(vecs), depth,
                                                      products(panel) + product * l.m_step + t * width, c == 0, fetch, fetch_step});
            }
          }
        }
      }
    for (int64_t panel = from; panel < to; ++panel)
      for (int t = 0; t < b.count; ++t) {
        const Place place = place_of(p, l, tile + t);
        const int vecs = panel_width(l.panels, panel);
        for (int j = 0; j < vecs; ++j) {
          const int64_t k = (panel_first(l.panels, panel) + j) * kLanes;
          if (k >= p.k) break;
          const float* m_t = products(panel) + (b.position[t] * vecs + j) * kLanes;
          const auto store_as = [&](auto rows, auto columns) __attribute__((always_inline)) {
            const auto write = [&](auto io) __attribute__((always_inline)) {
              store_tile<decltype(rows), decltype(columns)>(p, a, place.n, place.row, place.column, m_t, kIn * l.m_step, l.m_step, k, io);
            };
            if (p.k - k >= kLanes) write(Full{});
            else write(Part{static_cast<int>(p.k - k)});
          };
          switch (place.kind) {
            case k4x2: store_as(Whole{}, Half{}); break;
            case k4x4: store_as(Whole{}, Whole{}); break;
            case k2x4: store_as(Half{}, Whole{}); break;
            default: store_as(Half{}, Half{});
          }
        }
      }
  }
}

const char* refuse(const ConvProblem& p) { return refuse_winograd(p, 3); }

int64_t packed_bytes(const ConvProblem& p) { return panels_of(p).vecs * kLanes * p.c * kTaps * 4; }

double cost(const ConvProblem& p) {
  double products = 0, tiles = 0;
  for (int64_t row = 0; row < p.p; row += kOut) {
    const int height = p.p - row <= Half::kOut ? Half::kIn : Whole::kIn;
    const int64_t halves = p.q % kOut > 0 && p.q % kOut <= Half::kOut, wholes = ceil_div(p.q, kOut) - halves;
    products += static_cast<double>(height * (Whole::kIn * wholes + Half::kIn * halves));
    tiles += static_cast<double>(wholes + halves);
  }
  const double vecs = static_cast<double>(panels_of(p).vecs), c = static_cast<double>(p.c);
  const double gemm = (products / 0.73 + kProducts * 0.7 * kLanes) * vecs * c, transforms = tiles * 150 * (vecs + c / kLanes);
  return (gemm + transforms) / kVectorsPerMicrosecond + static_cast<double>(packed_bytes(p)) / kBytesPerMicrosecond;
}

int64_t scratch_bytes(const ConvProblem& p) {
  const Layout l = layout_of(p, kMaxBlock);  // blocks are as large as they get
  return align64((kProducts * (l.v_step + kMaxGroup * l.m_step) + kIn * u_step(kMaxVecs)) * 4);
}

int64_t tasks(const ConvProblem& p, int64_t images) {
  const Layout l = layout_of(p, images);
  return l.blocks * l.groups;
}

int64_t pack_tasks(const ConvProblem& p) { return panels_of(p).count; }

void pack(const ConvProblem& p, const void* weights, const void* scale, void* packed, int64_t first, int64_t last) {
  const float* w = static_cast<const float*>(weights);
  const float* s = static_cast<const float*>(scale);
  const Panels panels = panels_of(p);
  for (int64_t panel = first; panel < last; ++panel) {
    const int64_t k_first = panel_first(panels, panel) * kLanes, width = panel_width(panels, panel) * kLanes;
    float* out = static_cast<float*>(packed) + k_first * kTaps * p.c;
    for (int64_t r = 0; r < 3; ++r)
      for (int64_t c = 0; c < p.c; ++c)
        for (int64_t tap = 3 * r; tap < 3 * r + 3; ++tap)
          for (int64_t j = 0; j < width; j += kLanes, out += kLanes) {
            const int64_t k = k_first + j;
            const int have = static_cast<int>(least(kLanes, p.k - k));
            store(out, load_n(w + (tap * p.c + c) * p.k + k, have) * (s ? load_n(s + k, have) : splat(1.f)));
          }
  }
}

}  // namespace

extern const ConvKernel conv_winograd_mixed;
const ConvKernel conv_winograd_mixed = {"conv_winograd_mixed", refuse,     cost, scratch_bytes, tasks,   run,
                                        packed_bytes,          pack_tasks, pack, false,         nullptr, true};

}  // namespace CK_ISA
}  // namespace ck
