// What cuDNN says that it can (cuda/providers/cudnn_support.inc) as ops, which a GPU computes and the references check.
// What plans never ask of it is not among them: prologues in front of a convolution, reductions or GenStats behind one.
#pragma once

#include <algorithm>
#include <cstring>

#include "cuda/providers/cudnn_support.h"
#include "tests/shape_rows.h"

namespace effnet::test {

inline ShapeRow cudnn_row(const cuda::SupportRow& given, int64_t batch, int64_t size) {
  const std::string graph = given.graph, type = given.dtype;
  const auto has = [&](const char* part) { return graph.find(part) != std::string::npos; };
  ShapeRow row;
  row.half_gradient = has("_half");
  dtype_of(type == "tf32" ? "f32" : type, row.dtype);
  row.text = type + " " + graph + " k" + std::to_string(given.kernel) + " s" + std::to_string(given.stride) + " " +
             std::to_string(size) + "x" + std::to_string(given.ic) + "->" + std::to_string(given.oc);
  const int64_t pad = given.kernel / 2, out = (size + 2 * pad - given.kernel) / given.stride + 1;
  row.attrs.emplace_back("stride", given.stride);
  for (const char* side : {"pad_t", "pad_l", "pad_b", "pad_r"}) row.attrs.emplace_back(side, static_cast<double>(pad));
  const auto image = [&](const char* name, int64_t side, int64_t channels) {
    return ShapePort{name, true, false, row.dtype, {batch, side, side, channels}};
  };
  const auto f32 = [](const char* name, bool among_weights, std::vector<int64_t> dims) {
    return ShapePort{name, true, among_weights, plan::DType::f32, std::move(dims)};
  };
  const ShapePort src = image("src", size, given.ic);
  const std::vector<int64_t> filter{given.oc, given.kernel, given.kernel, given.ic};
  if (graph == "bwd_data") {
    row.op = "conv2d_bwd_data";
    row.inputs = {image("diff_dst", out, given.oc), f32("weights", true, filter)};
    row.outputs = {image("diff_src", size, given.ic)};
  } else if (has("bwd_weights")) {
    row.op = "conv2d_bwd_weights";
    row.inputs = {src, image("diff_dst", out, given.oc)};
    row.outputs = {f32("diff_weights", false, filter)};
  } else {
    row.op = has("_bias") ? "conv2d_bias_act" : "conv2d";
    row.inputs = {src, f32("weights", true, filter)};
    if (has("_bias")) {
      row.attrs.emplace_back("act", static_cast<double>(has("_silu") ? plan::Act::silu : plan::Act::identity));
      ShapePort residual = image("residual", out, given.oc);
      residual.there = has("_residual");
      row.inputs.insert(row.inputs.end(),
                        {f32("bias", false, {given.oc}), ShapePort{"gate", false, false, {}, {}}, std::move(residual)});
    }
    row.outputs = {image("dst", out, given.oc)};
  }
  return row;
}

// Those of a GPU and a precision that it has an engine for, each graph at one layer before any at another.
inline std::vector<ShapeRow> cudnn_rows(int capability, const std::string& precision, bool rehearsing) {
  std::vector<cuda::SupportRow> rows;
  for (const cuda::SupportRow& row : cuda::support_rows())
    if (row.capability == (capability >= 90 ? 90 : 80) && row.dtype == precision && row.engine != 0)
      rows.push_back(row);
  if (rows.empty()) return {};
  const int first = rows[0].size;
  std::stable_partition(rows.begin(), rows.end(), [&](const cuda::SupportRow& row) { return row.size == first; });
  std::vector<ShapeRow> made;
  for (const cuda::SupportRow& row : rows)
    made.push_back(cudnn_row(row, rehearsing ? 1 : 32, rehearsing ? 6 : row.size));
  return made;
}

}  // namespace effnet::test
