// What the verifier says to plans that were changed in one place.
#include "plan/plan.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "tests/plan_seeds.h"

namespace effnet {
namespace {

using plan::Header;
using plan::OpId;
using plan::OpRecord;
using plan::TensorRecord;

// A plan's bytes and records of them that can be written back.
class Edited {
 public:
  explicit Edited(const std::string& seed) : bytes_(test::plan_seed(seed)) {
    std::memcpy(&header_, bytes_.data(), sizeof header_);
  }

  Status load() const { return plan::Plan::load(bytes_).status(); }
  OpRecord op(OpId id) const {
    for (uint32_t i = 0; i < header_.op_count; ++i)
      if (const auto record = at<OpRecord>(header_.ops_offset, i); record.op == static_cast<uint16_t>(id))
        return record;
    ADD_FAILURE() << "no such op in the seed";
    return {};
  }
  void set_flags(OpId id, uint16_t flags) {
    for (uint32_t i = 0; i < header_.op_count; ++i)
      if (auto record = at<OpRecord>(header_.ops_offset, i); record.op == static_cast<uint16_t>(id)) {
        record.flags = flags;
        return put(header_.ops_offset, i, record);
      }
    ADD_FAILURE() << "no such op in the seed";
  }
  uint32_t ref(uint32_t i) const { return at<uint32_t>(header_.refs_offset, i); }
  void set_ref(uint32_t i, uint32_t tensor) { put(header_.refs_offset, i, tensor); }
  TensorRecord tensor(uint32_t i) const { return at<TensorRecord>(header_.tensors_offset, i); }
  void set_tensor(uint32_t i, const TensorRecord& record) { put(header_.tensors_offset, i, record); }

 private:
  template <class T>
  T at(uint64_t offset, uint32_t i) const {
    T record;
    std::memcpy(&record, bytes_.data() + offset + i * sizeof record, sizeof record);
    return record;
  }
  template <class T>
  void put(uint64_t offset, uint32_t i, const T& record) {
    std::memcpy(bytes_.data() + offset + i * sizeof record, &record, sizeof record);
  }

  std::vector<std::byte> bytes_;
  Header header_;
};

void expect_refused(const Edited& plan, const std::string& why) {
  const Status status = plan.load();
  EXPECT_EQ(status.code(), Code::plan_invalid);
  EXPECT_NE(status.message().find(why), std::string::npos) << status.message();
}

TEST(Plan, GradientsAreRoundedToThe16BitsOfImagesOnly) {
  const auto with_flag = [](const std::string& seed, OpId id, int flags) {
    Edited plan(seed);
    plan.set_flags(id, static_cast<uint16_t>(flags));
    return plan;
  };
  EXPECT_TRUE(with_flag("conv2d_bwd_weights-xx.bf16", OpId::conv2d_bwd_weights, plan::kOpHalfGradient).load().ok());
  const std::string why = "rounds a gradient of weights to 16 bits, and has none of 16-bit images";
  expect_refused(with_flag("conv2d_bwd_weights-xx.f32", OpId::conv2d_bwd_weights, plan::kOpHalfGradient), why);
  expect_refused(with_flag("conv2d-xx.bf16", OpId::conv2d, plan::kOpHalfGradient), why);
  expect_refused(with_flag("conv2d-xx.bf16", OpId::conv2d, 2 * plan::kOpHalfGradient), "unknown flag");
}

TEST(Plan, OutputsShareNoByte) {
  for (const char* seed : {"bn_stats-x.f32", "bn_stats-x.bf16"}) {
    Edited twice(seed);
    ASSERT_TRUE(twice.load().ok()) << twice.load().message();
    const OpRecord op = twice.op(OpId::bn_stats);
    ASSERT_EQ(op.output_count, 2u);
    twice.set_ref(op.output_first + 1, twice.ref(op.output_first));
    expect_refused(twice, "two outputs overlap");

    Edited overlapping(seed);
    const uint32_t second = overlapping.ref(op.output_first + 1);
    TensorRecord record = overlapping.tensor(second);
    record.offset = overlapping.tensor(overlapping.ref(op.output_first)).offset;
    overlapping.set_tensor(second, record);
    expect_refused(overlapping, "two outputs overlap");
  }
}

TEST(Plan, UpdatesShareNoByte) {
  Edited statistics("bn_stats-x.f32");
  const OpRecord bn = statistics.op(OpId::bn_stats);
  ASSERT_EQ(bn.update_count, 2u);
  statistics.set_ref(bn.update_first, statistics.ref(bn.update_first + 1));
  expect_refused(statistics, "updates the same weights twice");

  // The lists of an optimizer are as long as the model: any two of them, not only neighbours.
  for (const auto& [seed, id] :
       {std::pair("optimizer_sgd-n.f32", OpId::optimizer_sgd), std::pair("train.f32", OpId::optimizer_adamw)}) {
    Edited plan(seed);
    ASSERT_TRUE(plan.load().ok()) << plan.load().message();
    const OpRecord op = plan.op(id);
    ASSERT_GE(op.update_count, 2u);
    plan.set_ref(op.update_first + op.update_count - 1, plan.ref(op.update_first));
    expect_refused(plan, "updates the same weights twice");
  }
}

}  // namespace
}  // namespace effnet
