// The layers of the models at their real sizes on a GPU, beside naive double precision on the same GPU
// (tests/device/reference.cu, which cuda_reference_test holds to the host's loops): one op at a time on made-up values.
//
//   gpu_shapes_test FILE PRECISION [FROM UNTIL [ORDERS]]
//
// FILE: of scripts/gpu/shapes.ts; PRECISION: f32, tf32, bf16 or f16; FROM: the line to begin with, from 0; UNTIL: the
// second (since 1970) in which it stops between two lines, 0: never; ORDERS: of the driver without a GPU, as 3,4,7:
// each must give the bits that the first run gave (on a GPU so many more runs).
//
// A line for each result that is off further than it may be, one for each op with the largest share of its limit that
// a result took, the number of both last, and with UNTIL the line to go on with or "to the end".
//
// With UNTIL it says which line it begins, as "line N", so that whoever called it knows where it broke off: a launch
// that fails or faults ends it, since neither the context nor the memory can be trusted behind that.
// EFFNET_SHAPE_SECONDS: so does a line that takes longer.
#include <unistd.h>

#include <ctime>

#include "cudnn_rows.h"
#include "kernel_rig.h"
#include "shape_op.h"

namespace effnet::test {
namespace {

constexpr double kOfProducts = 0x1p-20, kOfSums = 0x1p-18;

class Check {
 public:
  Check(const ShapeRow& row, bool tf32, const std::vector<std::string>& orders = {})
      : op_(row, tf32 ? plan::kOpTf32 : 0), tf32_(tf32) {
    kernel_ = op_.run();
    for (const std::string& order : orders) {
      if (op_.same_under(order)) continue;
      wrong_ = true;
      std::printf("%s: other bits under order %s\n  %s\n", kernel_.c_str(), order.c_str(), row.text.c_str());
    }
    act_ = static_cast<int32_t>(op_.attr("act"));
    type_ = ref_type(row.dtype);
    fast_ = row.dtype != DType::f32;
  }

  void run() {
    const std::string& name = op_.row().op;
    if (name.find("conv2d") == std::string::npos)
      normalisation(name);
    else if (name.find("bwd") == std::string::npos)
      forward();
    else
      backward();
  }
  bool wrong() const { return wrong_; }
  const std::string& kernel() const { return kernel_; }
  double used() const { return used_; }

 private:
  struct Source {
    RefTensor value, off;
  };

  RefNorm norm(const std::string& prefix) const {
    return {op_.ref(prefix + "mean"), op_.ref(prefix + "inv_std"), op_.ref(prefix + "scale"),
            op_.ref(prefix + "shift")};
  }
  bool depthwise() const { return op_.row().op.starts_with("depthwise"); }
  int64_t image(const Tensor* t) const { return t->h() * t->w() * t->c(); }
  RefTensor kept(const Tensor* t, const std::string& prefix = "") {
    const double rate = op_.attr((prefix + "drop_rate").c_str());
    if (rate == 0) return {};
    std::vector<double> factors;
    for (int64_t n = 0; n < t->n(); ++n)
      factors.push_back(
          survival(rate, static_cast<uint64_t>(op_.scalars().seed), static_cast<uint64_t>(op_.scalars().step),
                   static_cast<uint32_t>(op_.attr((prefix + "rng_stream").c_str())), static_cast<uint64_t>(n)));
    return {op_.scratch().copy_of(factors.data(), t->n()), RefType::f64, RefType::f64};
  }

  // What the window slides over.
  Source source() {
    const Tensor* src = op_.find("src");
    const RefTensor gate = depthwise() ? RefTensor{} : op_.ref("gate");
    if (!op_.find("src_mean") && !gate.data) return {op_.ref("src"), {}};
    const int64_t count = src->elements();
    RefActivateArgs args{.src = op_.ref("src"),
                         .norm = norm("src_"),
                         .gate = gate,
                         .kept = {},
                         .residual = {},
                         .act = static_cast<int32_t>(op_.attr("src_act")),
                         .rounding = type_,
                         .fast = fast_,
                         .count = count,
                         .channels = src->c(),
                         .image = image(src),
                         .dst = op_.scratch().make<double>(count),
                         .off = op_.scratch().make<double>(count)};
    launch_reference("ref_activate", count, args);
    return {{args.dst}, {args.off}};
  }

  RefBehindArgs behind_args(const Tensor* x, const char* name) {
    const int64_t count = x->elements();
    return {.diff_dst = op_.ref("diff_dst"),
            .x = op_.ref(name),
            .norm = norm(""),
            .diff_scale = {},
            .diff_shift = {},
            .gate = op_.ref("gate"),
            .diff_pooled = op_.ref("diff_pooled"),
            .kept = kept(x),
            .act = act_,
            .rounding = RefType::f64,
            .fast = fast_,
            .plain = false,
            .count = count,
            .channels = x->c(),
            .image = image(x),
            .dst = op_.scratch().make<double>(count),
            .off = op_.scratch().make<double>(count)};
  }
  // The gradient of the convolution's result.
  Source gradient() {
    const Tensor* dst = op_.find("dst");
    if (!dst) return {op_.ref("diff_dst"), {}};
    RefBehindArgs args = behind_args(dst, "dst");
    args.diff_scale = op_.ref("diff_scale");
    args.diff_shift = op_.ref("diff_shift");
    if (!depthwise()) args.gate = {};  // there it is the source's
    args.rounding = type_;
    launch_reference("ref_behind", args.count, args);
    return {{args.dst}, {args.off}};
  }

  // `src` and `dst` have the convolution's shapes; the operands are yet to be set.
  RefConvArgs geometry(const Tensor* src, const Tensor* dst, const Tensor* weights) const {
    return {.src = {},
            .weights = {},
            .diff_dst = {},
            .off_src = {},
            .off_diff_dst = {},
            .relative_off = tf32_ ? 0x1p-11 : 0,
            .n = src->n(),
            .h = src->h(),
            .w = src->w(),
            .ic = src->c(),
            .oh = dst->h(),
            .ow = dst->w(),
            .oc = dst->c(),
            .k = depthwise() ? weights->dims[0] : weights->dims[1],
            .stride = static_cast<int64_t>(op_.attr("stride")),
            .top = static_cast<int64_t>(op_.attr("pad_t")),
            .left = static_cast<int64_t>(op_.attr("pad_l")),
            .depthwise = depthwise(),
            .slices = 1,
            .dst = nullptr};
  }

  void forward() {
    const Tensor *src = op_.find("src"), *dst = op_.find("dst"), *weights = op_.find("weights");
    const Source from = source();
    RefConvArgs args = geometry(src, dst, weights);
    args.src = from.value;
    args.off_src = from.off;
    args.weights = op_.ref("weights", type_);
    args.dst = op_.scratch().make<RefTerms>(dst->elements());
    launch_reference("ref_conv_forward", dst->elements(), args);
    if (op_.find("bias")) {
      const RefFinishArgs finish{args.dst, op_.ref("bias"), op_.ref("residual"), {},      {},
                                 act_,     fast_,           dst->elements(),     dst->c()};
      launch_reference("ref_finish", dst->elements(), finish);
    }
    compare("dst", op_.ref("dst"), args.dst, dst->elements(), kOfProducts, true);
    if (op_.find("pooled")) pooled(op_.ref("dst"), {}, dst);
    if (op_.find("mean")) statistics(dst);
  }

  void backward() {
    const Tensor *diff_src = op_.find("diff_src"), *diff_weights = op_.find("diff_weights");
    const Tensor* src = diff_src ? diff_src : op_.find("src");
    const Source gradient = this->gradient();
    RefConvArgs args = geometry(src, op_.find("diff_dst"), diff_weights ? diff_weights : op_.find("weights"));
    args.diff_dst = gradient.value;
    args.off_diff_dst = gradient.off;
    if (diff_src) {
      args.weights = op_.ref("weights", type_);
      args.dst = op_.scratch().make<RefTerms>(src->elements());
      launch_reference("ref_conv_backward_data", src->elements(), args);
      if (op_.find("src_mean") && !op_.find("diff_gate")) {
        const RefFinishArgs finish{args.dst,        {},      {}, op_.ref("src"), norm("src_"), source_act(), fast_,
                                   src->elements(), src->c()};
        launch_reference("ref_finish", src->elements(), finish);
      }
      if (op_.find("addend")) {
        const RefFinishArgs finish{args.dst, {}, op_.ref("addend"), {}, {}, 0, fast_, src->elements(), src->c()};
        launch_reference("ref_finish", src->elements(), finish);
      }
      compare("diff_src", op_.ref("diff_src"), args.dst, src->elements(), kOfProducts, true);
    }
    if (diff_weights) {
      const Source from = source();
      args.src = from.value;
      args.off_src = from.off;
      args.slices = std::min<int64_t>(64, args.n * args.oh * args.ow);
      const int64_t count = diff_weights->elements();
      args.dst = op_.scratch().make<RefTerms>(count * args.slices);
      launch_reference("ref_conv_backward_weights", count * args.slices, args);
      const RefTerms* all = added(args.dst, count, args.slices);
      compare("diff_weights", op_.ref("diff_weights"), all, count, kOfProducts, op_.row().half_gradient);
    }
    if (op_.find("end_src")) {
      end_sums(src);
    } else if (op_.find("src_diff_scale")) {
      const RefTensor stored = op_.ref("diff_src");
      expect_sums("src_diff_scale", stored, {}, "src", "src_", RefTerm::v_hat, 1, source_act());
      expect_sums("src_diff_shift", stored, {}, "src", "src_", RefTerm::v, 1, source_act());
    }
    if (op_.find("diff_gate")) sums_by_image(src);
  }
  int32_t source_act() const { return static_cast<int32_t>(op_.attr("src_act")); }

  // Of the BN in front of the source, of what was stored.
  void end_sums(const Tensor* src) {
    RefActivateArgs args{.src = op_.ref("diff_src"),
                         .norm = {},
                         .gate = {},
                         .kept = kept(src, "end_"),
                         .residual = {},
                         .act = 0,
                         .rounding = RefType::f64,
                         .fast = fast_,
                         .count = src->elements(),
                         .channels = src->c(),
                         .image = image(src),
                         .dst = op_.scratch().make<double>(src->elements()),
                         .off = nullptr};
    launch_reference("ref_activate", src->elements(), args);
    expect_sums("src_diff_scale", {args.dst}, {}, "end_src", "end_", RefTerm::v_hat, 1, 0);
    expect_sums("src_diff_shift", {args.dst}, {}, "end_src", "end_", RefTerm::v, 1, 0);
  }

  void sums_by_image(const Tensor* src) {
    const RefTensor stored = op_.ref("diff_src");
    expect_sums("diff_gate", stored, {}, "src", "src_", RefTerm::v_act, src->n(), source_act());
    const RefTerm parts[] = {RefTerm::v_slope, RefTerm::slope, RefTerm::v_slope_hat, RefTerm::slope_hat};
    const int64_t c = src->c();
    for (int64_t part = 0; part < 4; ++part) {
      const bool of_v = part % 2 == 0;
      const RefTerms* want =
          sums(of_v ? stored : RefTensor{}, {}, "src", "src_", parts[part], src->n(), source_act(), 1);
      for (int64_t n = 0; n < src->n(); ++n) {
        RefTensor got = op_.ref("sums");
        got.data = static_cast<const float*>(got.data) + (4 * n + part) * c;
        compare("sums", got, want + n * c, c, kOfSums, false);
      }
    }
  }

  // BN and what follows it, without a convolution.
  void normalisation(const std::string& name) {
    const bool linear = name == "bn_bwd_apply";
    const Tensor* src = op_.find("src");
    const int64_t count = src->elements();
    if (name.find("bwd") != std::string::npos) {
      RefBehindArgs args = behind_args(src, "src");
      if (linear) args.act = 0;
      args.plain = name == "bn_act_bwd_reduce";
      if (!args.plain) {
        args.diff_scale = op_.ref("diff_scale");
        args.diff_shift = op_.ref("diff_shift");
      }
      launch_reference("ref_behind", count, args);
      if (args.plain) {
        expect_sums("diff_scale", {args.dst}, {args.off}, "src", "", RefTerm::v_hat, 1, act_);
        expect_sums("diff_shift", {args.dst}, {args.off}, "src", "", RefTerm::v, 1, act_);
      } else {
        compare("diff_src", op_.ref("diff_src"), terms(args.dst, args.off, count), count, kOfProducts, true);
      }
      return;
    }
    const bool pool = name == "bn_act_pool";
    RefActivateArgs args{.src = op_.ref("src"),
                         .norm = norm(""),
                         .gate = op_.ref("gate"),
                         .kept = kept(src),
                         .residual = op_.ref("residual"),
                         .act = act_,
                         .rounding = pool ? type_ : RefType::f64,
                         .fast = fast_,
                         .count = count,
                         .channels = src->c(),
                         .image = image(src),
                         .dst = op_.scratch().make<double>(count),
                         .off = op_.scratch().make<double>(count)};
    launch_reference("ref_activate", count, args);
    if (op_.find("dst")) compare("dst", op_.ref("dst"), terms(args.dst, args.off, count), count, kOfProducts, true);
    if (pool) pooled({args.dst}, {args.off}, src);
  }

  void pooled(RefTensor values, RefTensor off, const Tensor* images) {
    const double pixels = static_cast<double>(images->h() * images->w());
    const RefTerms* want = sums(values, off, nullptr, "", RefTerm::v, images->n(), 0, 1 / pixels, images);
    compare("pooled", op_.ref("pooled"), want, images->n() * images->c(), kOfSums, false);
  }

  // Of the values that were stored; against double precision on the host from there on.
  void statistics(const Tensor* dst) {
    const int64_t c = dst->c(), rows = dst->elements() / c;
    const double share = 1 / static_cast<double>(rows);
    const auto means = to_host(sums(op_.ref("dst"), {}, nullptr, "", RefTerm::v, 1, 0, share, dst), c);
    std::vector<double> values;
    for (const RefTerms& mean : means) values.push_back(mean.sum);
    own_mean_ = {op_.scratch().copy_of(values.data(), c)};
    const auto variances = to_host(sums({}, {}, "dst", "own", RefTerm::apart, 1, 0, share), c);
    std::vector<RefTerms> want_mean, want_inv_std, want_running_mean, want_running_var;
    const double momentum = op_.attr("momentum"), unbiased = rows > 1 ? 1 / (1 - share) : 1;
    std::vector<double> before[2];
    filled_before("running_mean", before[0], c);
    filled_before("running_var", before[1], c);
    for (size_t i = 0; i < values.size(); ++i) {
      const double mean = values[i], variance = variances[i].sum, inv = 1 / std::sqrt(variance + op_.attr("eps"));
      // Depthwise tiles keep their means in FP32; what that rounding moves the variance by.
      const double of_means = depthwise() ? 4 * 0x1p-24 * std::abs(mean) * std::sqrt(variance) : 0;
      want_mean.push_back({mean, means[i].size, 0});
      want_inv_std.push_back({inv, inv + of_means * inv * inv * inv / kOfSums, 0});
      want_running_mean.push_back({(1 - momentum) * before[0][i] + momentum * mean, means[i].size + 1, 0});
      want_running_var.push_back(
          {(1 - momentum) * before[1][i] + momentum * variance * unbiased, 1 + variance + of_means / kOfSums, 0});
    }
    const std::pair<const char*, const std::vector<RefTerms>*> all[] = {{"mean", &want_mean},
                                                                        {"inv_std", &want_inv_std},
                                                                        {"running_mean", &want_running_mean},
                                                                        {"running_var", &want_running_var}};
    for (const auto& [name, want] : all)
      compare(name, op_.ref(name), op_.scratch().copy_of(want->data(), c), c, kOfSums, false);
  }
  // What an update was before the op ran: filled the same way once more.
  void filled_before(const char* name, std::vector<double>& values, int64_t count) {
    float* again = op_.scratch().make<float>(count);
    op_.fill_again(name, again);
    for (const float v : to_host(again, count)) values.push_back(v);
  }

  // [groups, channels]; `x` may be null, then `like` has the shape.
  RefTerms* sums(RefTensor v, RefTensor off, const char* x, const std::string& prefix, RefTerm term, int64_t groups,
                 int32_t act, double factor, const Tensor* like = nullptr) {
    const Tensor* shape = like ? like : op_.find(x);
    const int64_t c = shape->c(), rows = shape->elements() / c / groups, slices = std::min<int64_t>(64, rows);
    RefSumArgs args{.v = v,
                    .off_v = off,
                    .x = x ? op_.ref(x) : RefTensor{},
                    .norm = prefix == "own" ? RefNorm{own_mean_, {}, {}, {}} : norm(prefix),
                    .term = term,
                    .act = act,
                    .fast = fast_,
                    .groups = groups,
                    .rows = rows,
                    .channels = c,
                    .slices = slices,
                    .factor = factor,
                    .dst = op_.scratch().make<RefTerms>(groups * c * slices)};
    launch_reference("ref_sums", groups * c * slices, args);
    return added(args.dst, groups * c, slices);
  }
  void expect_sums(const char* name, RefTensor v, RefTensor off, const char* x, const std::string& prefix, RefTerm term,
                   int64_t groups, int32_t act) {
    compare(name, op_.ref(name), sums(v, off, x, prefix, term, groups, act, 1), groups * op_.find(x)->c(), kOfSums,
            false);
  }
  RefTerms* added(const RefTerms* slices, int64_t count, int64_t number) {
    auto* all = op_.scratch().make<RefTerms>(count);
    launch_reference("ref_add_slices", count, RefAddArgs{slices, count, number, all});
    return all;
  }
  RefTerms* terms(const double* value, const double* off, int64_t count) {
    auto* all = op_.scratch().make<RefTerms>(count);
    launch_reference("ref_terms", count, RefTermsArgs{value, off, count, all});
    return all;
  }

  // `stored`: it is in the type of images, whose rounding it may be off by.
  void compare(const char* name, RefTensor got, const RefTerms* want, int64_t count, double size_share, bool stored) {
    constexpr int64_t kChunk = 256;
    const int64_t chunks = (count + kChunk - 1) / kChunk;
    auto* worst = op_.scratch().make<double>(chunks);
    auto* where = op_.scratch().make<int64_t>(chunks);
    const bool half = stored && type_ != RefType::f32;
    const double unit = !half ? 0x1p-22 : type_ == RefType::bf16 ? 0x1p-8 : 0x1p-11;
    const double least = half && type_ == RefType::f16 ? 0x1p-24 : 1e-30;
    launch_reference("ref_compare", chunks,
                     RefCompareArgs{got, want, count, kChunk, size_share, unit, least, worst, where});
    const auto shares = to_host(worst, chunks);
    const auto largest = std::max_element(shares.begin(), shares.end());
    used_ = std::max(used_, *largest);
    if (*largest <= 1) return;
    wrong_ = true;
    const int64_t at = to_host(where, chunks)[static_cast<size_t>(largest - shares.begin())];
    const RefTerms there = to_host(want + at, 1)[0];
    std::printf("%s %s[%lld]: wants %.9g (terms %.3g), is off by %.3g of what it may\n  %s\n", kernel_.c_str(), name,
                static_cast<long long>(at), there.sum, there.size, *largest, op_.row().text.c_str());
  }

  ShapeOp op_;
  std::string kernel_;
  int32_t act_;
  RefType type_;
  bool fast_, tf32_, wrong_ = false;
  double used_ = 0;
  RefTensor own_mean_;
};

void begin_line(size_t line, time_t until) {
  if (until == 0) return;
  std::printf("line %zu\n", line);
  std::fflush(stdout);
  if (const char* seconds = std::getenv("EFFNET_SHAPE_SECONDS")) alarm(static_cast<unsigned>(std::atoi(seconds)));
}

bool in_time(time_t until) { return until == 0 || std::time(nullptr) < until; }

// The end of the last line, and whether it is that of a whole list.
bool end_lines(size_t from, size_t line, size_t lines, time_t until) {
  alarm(0);
  if (until && line < lines)
    std::printf(", go on with line %zu of %zu", line, lines);
  else if (until)
    std::printf(", to the end");
  std::printf("\n");
  return from == 0 && line >= lines;
}

int check_all(const std::string& file, const std::string& precision, size_t from, time_t until,
              const std::vector<std::string>& orders) {
  const bool tf32 = precision == "tf32";
  DType dtype;
  std::vector<ShapeRow> rows;
  std::string problem;
  if (!dtype_of(tf32 ? "f32" : precision, dtype)) problem = "no precision " + precision;
  if (!problem.empty() || !read_rows(file, rows, problem)) {
    std::printf("%s\n", problem.c_str());
    return 64;
  }
  need(backend::gpu().status, "GPU");
  int tried = 0, wrong = 0;
  size_t line = from;
  std::map<std::string, double> used;
  for (; line < rows.size() && in_time(until); ++line) {
    const ShapeRow& row = rows[line];
    // TF32 is of products of matrices alone.
    if (row.dtype != dtype || (tf32 && !row.op.starts_with("conv2d"))) continue;
    begin_line(line, until);
    Check check(row, tf32, orders);
    check.run();
    ++tried;
    wrong += check.wrong();
    used[row.op] = std::max(used[row.op], check.used());
    std::fflush(stdout);
  }
  for (const auto& [op, share] : used) std::printf("%s %.0f %% of its limit\n", op.c_str(), 100 * share);
  std::printf("%s: %d shapes, %d off", precision.c_str(), tried, wrong);
  const bool whole = end_lines(from, line, rows.size(), until);
  return (tried > 0 || !whole) && wrong == 0 ? 0 : 1;
}

//   gpu_shapes_test cudnn PRECISION [FROM UNTIL]     what cuDNN says that it can (cudnn_rows.h), by cuDNN
// Where there is no plan of its that is said: with another version than the table's it is no mistake.
int check_cudnn(const std::string& precision, size_t from, time_t until) {
  need(backend::gpu().status, "GPU");
  setenv("EFFNET_CUDA_PROVIDER", "cudnn", 1);
  const char* rehearsing = std::getenv("EFFNET_REHEARSE");
  const auto gpu = cuda::Device::properties(backend::gpu().device->driver(), 0);
  need(gpu.ok() ? ok_status() : gpu.status(), "GPU");
  const auto rows = cudnn_rows(gpu.value().capability, precision, rehearsing && std::string(rehearsing) == "1");
  size_t line = from, tried = 0, wrong = 0, without = 0;
  for (; line < rows.size() && in_time(until); ++line) {
    begin_line(line, until);
    Check check(rows[line], precision == "tf32");
    ++tried;
    const std::string& text = rows[line].text;
    if (!check.kernel().ends_with(":cudnn")) {
      ++without;
      std::printf("%s: no plan\n", text.c_str());
    } else {
      check.run();
      wrong += check.wrong();
      std::printf("%s: %.0f %% of its limit\n", text.c_str(), 100 * check.used());
    }
    std::fflush(stdout);
  }
  std::printf("%s: %zu of %zu graphs, %zu off, %zu without a plan", precision.c_str(), tried, rows.size(), wrong,
              without);
  const bool whole = end_lines(from, line, rows.size(), until);
  return (tried > without || !whole) && wrong == 0 ? 0 : 1;
}

//   gpu_shapes_test device             the GPU as cuDNN describes it: native/tests/gpus. Exit code 75 without cuDNN
int describe_device() {
  need(backend::gpu().status, "GPU");
  need(backend::gpu().device->enter(), "GPU");
  const auto text = cuda::Cudnn::describe_device(0);
  if (!text.ok() && text.status().code() == Code::backend_missing) {
    std::printf("cuDNN: %s\n", text.status().message().c_str());
    return 75;
  }
  need(text.ok() ? ok_status() : text.status(), "cuDNN");
  std::printf("%s\n", text.value().c_str());
  return 0;
}

}  // namespace
}  // namespace effnet::test

int main(int argc, char** argv) {
  const std::string first = argc > 1 ? argv[1] : "";
  if (argc == 2 && first == "device") return effnet::test::describe_device();
  const size_t from = argc > 4 ? std::strtoull(argv[3], nullptr, 10) : 0;
  const time_t until = argc > 4 ? std::strtoll(argv[4], nullptr, 10) : 0;
  if ((argc == 3 || argc == 5) && first == "cudnn") return effnet::test::check_cudnn(argv[2], from, until);
  if (argc < 3 || argc == 4 || argc > 6) {
    std::printf("gpu_shapes_test FILE PRECISION [FROM UNTIL [ORDERS]]\n");
    return 64;
  }
  return effnet::test::check_all(argv[1], argv[2], from, until, effnet::test::split(argc == 6 ? argv[5] : "", ','));
}
