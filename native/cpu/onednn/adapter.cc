#include "cpu/onednn/adapter.h"

#include <oneapi/dnnl/dnnl.h>

#include <cstdlib>
#include <string_view>
#include <utility>

namespace effnet::onednn {
namespace {

// oneDNN reads its limit once, before its first use; ours (EFFNET_MAX_ISA, see cpu/kernels/dispatch.h) implies one.
void limit_isa() {
  static const bool done = [] {
    const char* text = std::getenv("EFFNET_MAX_ISA");
    const std::string_view limit = text ? text : "";
    if (limit == "avx2") dnnl_set_max_cpu_isa(dnnl_cpu_isa_avx2);
    if (limit == "avx3") dnnl_set_max_cpu_isa(dnnl_cpu_isa_avx512_core);
    if (limit == "avx3_bf16") dnnl_set_max_cpu_isa(dnnl_cpu_isa_avx512_core_bf16);
    return true;
  }();
  static_cast<void>(done);
}

// The engine lives as long as the process: pools may still run while static objects are destroyed.
dnnl_engine_t engine() {
  static dnnl_engine_t instance = [] {
    limit_isa();
    dnnl_engine_t e = nullptr;
    dnnl_engine_create(&e, dnnl_cpu, 0);
    return e;
  }();
  return instance;
}

dnnl_stream_t thread_stream() {
  struct Stream {
    dnnl_stream_t handle = nullptr;
    Stream() { dnnl_stream_create(&handle, engine(), dnnl_stream_in_order); }
    ~Stream() { dnnl_stream_destroy(handle); }
  };
  thread_local Stream stream;
  return stream.handle;
}

Status failed(const char* call, dnnl_status_t status, const ConvShape& s) {
  const char* pass = s.pass == Pass::forward         ? "forward"
                     : s.pass == Pass::backward_data ? "backward data"
                                                     : "backward weights";
  return error(
      status == dnnl_out_of_memory ? Code::oom : Code::plan_invalid,
      "oneDNN %s failed (status %d) for a %s convolution %lldx%lldx%lldx%lld -> %lldx%lldx%lld, kernel %lldx%lld, "
      "stride %lld, %s",
      call, static_cast<int>(status), pass, static_cast<long long>(s.n), static_cast<long long>(s.ih),
      static_cast<long long>(s.iw), static_cast<long long>(s.ic), static_cast<long long>(s.oh),
      static_cast<long long>(s.ow), static_cast<long long>(s.oc), static_cast<long long>(s.kh),
      static_cast<long long>(s.kw), static_cast<long long>(s.stride), s.dtype == plan::DType::bf16 ? "bf16" : "f32");
}

struct Desc {
  dnnl_memory_desc_t handle = nullptr;
  Desc() = default;
  Desc(Desc&& other) noexcept : handle(std::exchange(other.handle, nullptr)) {}
  Desc& operator=(Desc&& other) noexcept {
    std::swap(handle, other.handle);
    return *this;
  }
  ~Desc() {
    if (handle) dnnl_memory_desc_destroy(handle);
  }
  size_t bytes() const { return dnnl_memory_desc_get_size(handle); }
};

dnnl_data_type_t data_type(plan::DType dtype) { return dtype == plan::DType::bf16 ? dnnl_bf16 : dnnl_f32; }

Desc image_desc(int64_t n, int64_t h, int64_t w, int64_t c, dnnl_data_type_t type) {
  Desc desc;
  const dnnl_dims_t dims = {n, c, h, w};
  dnnl_memory_desc_create_with_tag(&desc.handle, 4, dims, type, dnnl_nhwc);
  return desc;
}

Desc weights_desc(const ConvShape& s, dnnl_data_type_t type, bool plain) {
  Desc desc;
  const dnnl_dims_t dims = {s.oc, s.ic, s.kh, s.kw};
  dnnl_memory_desc_create_with_tag(&desc.handle, 4, dims, type, plain ? dnnl_acdb : dnnl_format_tag_any);
  return desc;
}

// A wrapper without memory of its own; the pointer is given per execution.
struct Memory {
  dnnl_memory_t handle = nullptr;
  Memory(const_dnnl_memory_desc_t desc, const void* data) {
    dnnl_memory_create(&handle, desc, engine(), const_cast<void*>(data));
  }
  ~Memory() { dnnl_memory_destroy(handle); }
};

struct Primitive {
  dnnl_primitive_desc_t desc = nullptr;
  dnnl_primitive_t handle = nullptr;
  ~Primitive() {
    if (handle) dnnl_primitive_destroy(handle);
    if (desc) dnnl_primitive_desc_destroy(desc);
  }
  const_dnnl_memory_desc_t query(dnnl_query_t what) const { return dnnl_primitive_desc_query_md(desc, what, 0); }
  const_dnnl_memory_desc_t scratch() const { return query(dnnl_query_scratchpad_md); }
};

struct Attributes {
  dnnl_primitive_attr_t handle = nullptr;
  Attributes() {
    dnnl_primitive_attr_create(&handle);
    dnnl_primitive_attr_set_scratchpad_mode(handle, dnnl_scratchpad_mode_user);
  }
  ~Attributes() { dnnl_primitive_attr_destroy(handle); }
};

}  // namespace

class WeightsLayout {
 public:
  explicit WeightsLayout(const_dnnl_memory_desc_t desc) { dnnl_memory_desc_clone(&desc_.handle, desc); }
  const_dnnl_memory_desc_t get() const { return desc_.handle; }

 private:
  Desc desc_;
};

namespace {

class ConvImpl final : public Conv {
 public:
  Status init(const ConvShape& s, const WeightsLayout* layout) {
    shape_ = s;
    const dnnl_data_type_t type = data_type(s.dtype);
    const bool backward_weights = s.pass == Pass::backward_weights;
    src_ = image_desc(s.n, s.ih, s.iw, s.ic, type);
    dst_ = image_desc(s.n, s.oh, s.ow, s.oc, type);
    const Desc any = weights_desc(s, backward_weights ? dnnl_f32 : type, false);
    const const_dnnl_memory_desc_t weights = layout ? layout->get() : any.handle;
    const dnnl_dims_t strides = {s.stride, s.stride}, dilates = {0, 0};
    const dnnl_dims_t pad_begin = {s.pad_t, s.pad_l}, pad_end = {s.pad_b, s.pad_r};
    if (s.bias) {
      const dnnl_dims_t dims = {s.oc};
      dnnl_memory_desc_create_with_tag(&bias_.handle, 1, dims, dnnl_f32, dnnl_a);
    }
    const Attributes attributes;
    dnnl_status_t status = dnnl_success;
    if (s.pass == Pass::forward) {
      status = dnnl_convolution_forward_primitive_desc_create(
          &primitive_.desc, engine(), dnnl_forward_inference, dnnl_convolution_direct, src_.handle, weights,
          bias_.handle, dst_.handle, strides, dilates, pad_begin, pad_end, attributes.handle);
    } else {
      // Backward primitives ask for the forward one they belong to.
      dnnl_primitive_desc_t hint = nullptr;
      const Desc hint_weights = weights_desc(s, type, false);
      status = dnnl_convolution_forward_primitive_desc_create(
          &hint, engine(), dnnl_forward_training, dnnl_convolution_direct, src_.handle, hint_weights.handle, nullptr,
          dst_.handle, strides, dilates, pad_begin, pad_end, attributes.handle);
      if (status != dnnl_success) return failed("forward hint", status, s);
      status = backward_weights
                   ? dnnl_convolution_backward_weights_primitive_desc_create(
                         &primitive_.desc, engine(), dnnl_convolution_direct, src_.handle, weights, nullptr,
                         dst_.handle, strides, dilates, pad_begin, pad_end, hint, attributes.handle)
                   : dnnl_convolution_backward_data_primitive_desc_create(
                         &primitive_.desc, engine(), dnnl_convolution_direct, src_.handle, weights, dst_.handle,
                         strides, dilates, pad_begin, pad_end, hint, attributes.handle);
      dnnl_primitive_desc_destroy(hint);
    }
    if (status != dnnl_success) return failed("primitive description", status, s);
    const char* info = nullptr;
    dnnl_primitive_desc_query(primitive_.desc, dnnl_query_impl_info_str, 0, &info);
    implementation_ = info ? info : "";
    if (implementation_.starts_with("ref"))
      return error(Code::plan_invalid, "oneDNN has only its reference implementation (%s): %s", info,
                   failed("dispatch", dnnl_unimplemented, s).message().c_str());
    status = dnnl_primitive_create(&primitive_.handle, primitive_.desc);
    if (status != dnnl_success) return failed("primitive creation", status, s);
    layout_ = std::make_unique<WeightsLayout>(
        primitive_.query(backward_weights ? dnnl_query_diff_weights_md : dnnl_query_weights_md));
    return ok_status();
  }

  const std::string& implementation() const override { return implementation_; }
  const WeightsLayout& layout() const override { return *layout_; }
  size_t weights_bytes() const override { return dnnl_memory_desc_get_size(layout_->get()); }
  size_t scratch_bytes() const override { return dnnl_memory_desc_get_size(primitive_.scratch()); }

  int execute(const void* a, void* weights, const float* bias, void* b, void* scratch) const override {
    const bool data = shape_.pass == Pass::backward_data;
    const Memory first(data ? dst_.handle : src_.handle, a), second(data ? src_.handle : dst_.handle, b);
    const Memory third(layout_->get(), weights), fourth(primitive_.scratch(), scratch);
    dnnl_exec_arg_t args[5];
    int count = 0;
    switch (shape_.pass) {
      case Pass::forward:
        args[count++] = {DNNL_ARG_SRC, first.handle};
        args[count++] = {DNNL_ARG_WEIGHTS, third.handle};
        args[count++] = {DNNL_ARG_DST, second.handle};
        break;
      case Pass::backward_data:
        args[count++] = {DNNL_ARG_DIFF_DST, first.handle};
        args[count++] = {DNNL_ARG_WEIGHTS, third.handle};
        args[count++] = {DNNL_ARG_DIFF_SRC, second.handle};
        break;
      case Pass::backward_weights:
        args[count++] = {DNNL_ARG_SRC, first.handle};
        args[count++] = {DNNL_ARG_DIFF_WEIGHTS, third.handle};
        args[count++] = {DNNL_ARG_DIFF_DST, second.handle};
        break;
    }
    args[count++] = {DNNL_ARG_SCRATCHPAD, fourth.handle};
    if (!bias_.handle) return dnnl_primitive_execute(primitive_.handle, thread_stream(), count, args);
    const Memory fifth(bias_.handle, bias);
    args[count++] = {DNNL_ARG_BIAS, fifth.handle};
    return dnnl_primitive_execute(primitive_.handle, thread_stream(), count, args);
  }

 private:
  ConvShape shape_;
  Primitive primitive_;
  Desc src_, dst_, bias_;
  std::unique_ptr<WeightsLayout> layout_;
  std::string implementation_;
};

class ReorderImpl final : public Reorder {
 public:
  Status init(const ConvShape& s, const_dnnl_memory_desc_t from, const_dnnl_memory_desc_t to) {
    dnnl_memory_desc_clone(&from_.handle, from);
    dnnl_memory_desc_clone(&to_.handle, to);
    const Attributes attributes;
    dnnl_status_t status =
        dnnl_reorder_primitive_desc_create(&primitive_.desc, from, engine(), to, engine(), attributes.handle);
    if (status != dnnl_success) return failed("reorder description", status, s);
    status = dnnl_primitive_create(&primitive_.handle, primitive_.desc);
    if (status != dnnl_success) return failed("reorder creation", status, s);
    return ok_status();
  }

  size_t scratch_bytes() const override { return dnnl_memory_desc_get_size(primitive_.scratch()); }

  int execute(const void* src, void* dst, void* scratch) const override {
    const Memory from(from_.handle, src), to(to_.handle, dst), pad(primitive_.scratch(), scratch);
    const dnnl_exec_arg_t args[] = {
        {DNNL_ARG_FROM, from.handle}, {DNNL_ARG_TO, to.handle}, {DNNL_ARG_SCRATCHPAD, pad.handle}};
    return dnnl_primitive_execute(primitive_.handle, thread_stream(), 3, args);
  }

 private:
  Primitive primitive_;
  Desc from_, to_;
};

StatusOr<std::shared_ptr<const Reorder>> make_reorder(const ConvShape& shape, const_dnnl_memory_desc_t from,
                                                      const_dnnl_memory_desc_t to) {
  auto reorder = std::make_shared<ReorderImpl>();
  EFF_RETURN_IF_ERROR(reorder->init(shape, from, to));
  return std::shared_ptr<const Reorder>(std::move(reorder));
}

}  // namespace

StatusOr<std::shared_ptr<const Conv>> Conv::create(const ConvShape& shape, const WeightsLayout* layout) {
  auto conv = std::make_shared<ConvImpl>();
  EFF_RETURN_IF_ERROR(conv->init(shape, layout));
  return std::shared_ptr<const Conv>(std::move(conv));
}

StatusOr<std::shared_ptr<const Reorder>> Reorder::pack(const ConvShape& shape, const WeightsLayout& to) {
  return make_reorder(shape, weights_desc(shape, dnnl_f32, true).handle, to.get());
}

StatusOr<std::shared_ptr<const Reorder>> Reorder::unpack(const ConvShape& shape, const WeightsLayout& from) {
  return make_reorder(shape, from.get(), weights_desc(shape, dnnl_f32, true).handle);
}

std::string version() {
  const dnnl_version_t* v = dnnl_version();
  return std::to_string(v->major) + "." + std::to_string(v->minor) + "." + std::to_string(v->patch);
}

std::string effective_isa() {
  limit_isa();
  switch (dnnl_get_effective_cpu_isa()) {
    case dnnl_cpu_isa_sse41:
      return "sse41";
    case dnnl_cpu_isa_avx:
      return "avx";
    case dnnl_cpu_isa_avx2:
      return "avx2";
    case dnnl_cpu_isa_avx2_vnni:
      return "avx2_vnni";
    case dnnl_cpu_isa_avx512_core:
      return "avx512_core";
    case dnnl_cpu_isa_avx512_core_vnni:
      return "avx512_core_vnni";
    case dnnl_cpu_isa_avx512_core_bf16:
      return "avx512_core_bf16";
    case dnnl_cpu_isa_avx512_core_fp16:
      return "avx512_core_fp16";
    case dnnl_cpu_isa_avx512_core_amx:
      return "avx512_core_amx";
    case dnnl_cpu_isa_avx512_core_amx_fp16:
      return "avx512_core_amx_fp16";
    default:
      return "unknown";
  }
}

}  // namespace effnet::onednn
