// Generated from ts/graph/op_table.json by scripts/gen-op-table.mjs. Do not edit.
// Positions of inputs, outputs, updates and attributes of every op, by name.
#pragma once

namespace effnet::op {
namespace input_normalize {
enum In : int { in_src = 0 };
enum Out : int { out_dst = 0 };
enum Attr : int { attr_mean0 = 0, attr_mean1 = 1, attr_mean2 = 2, attr_std0 = 3, attr_std1 = 4, attr_std2 = 5 };
}
namespace cast {
enum In : int { in_src = 0 };
enum Out : int { out_dst = 0 };
}
namespace conv2d {
enum In : int { in_src = 0, in_weights = 1 };
enum Out : int { out_dst = 0 };
enum Attr : int { attr_stride = 0, attr_pad_t = 1, attr_pad_l = 2, attr_pad_b = 3, attr_pad_r = 4 };
}
namespace conv2d_bwd_data {
enum In : int { in_diff_dst = 0, in_weights = 1 };
enum Out : int { out_diff_src = 0 };
enum Attr : int { attr_stride = 0, attr_pad_t = 1, attr_pad_l = 2, attr_pad_b = 3, attr_pad_r = 4 };
}
namespace conv2d_bwd_weights {
enum In : int { in_src = 0, in_diff_dst = 1 };
enum Out : int { out_diff_weights = 0 };
enum Attr : int { attr_stride = 0, attr_pad_t = 1, attr_pad_l = 2, attr_pad_b = 3, attr_pad_r = 4 };
}
namespace conv2d_bias_act {
enum In : int { in_src = 0, in_weights = 1, in_bias = 2, in_gate = 3, in_residual = 4 };
enum Out : int { out_dst = 0 };
enum Attr : int { attr_stride = 0, attr_pad_t = 1, attr_pad_l = 2, attr_pad_b = 3, attr_pad_r = 4, attr_act = 5 };
}
namespace depthwise_conv2d {
enum In : int { in_src = 0, in_weights = 1 };
enum Out : int { out_dst = 0 };
enum Attr : int { attr_stride = 0, attr_pad_t = 1, attr_pad_l = 2, attr_pad_b = 3, attr_pad_r = 4 };
}
namespace depthwise_conv2d_bwd_data {
enum In : int { in_diff_dst = 0, in_weights = 1 };
enum Out : int { out_diff_src = 0 };
enum Attr : int { attr_stride = 0, attr_pad_t = 1, attr_pad_l = 2, attr_pad_b = 3, attr_pad_r = 4 };
}
namespace depthwise_conv2d_bwd_weights {
enum In : int { in_src = 0, in_diff_dst = 1 };
enum Out : int { out_diff_weights = 0 };
enum Attr : int { attr_stride = 0, attr_pad_t = 1, attr_pad_l = 2, attr_pad_b = 3, attr_pad_r = 4 };
}
namespace depthwise_conv2d_bias_act {
enum In : int { in_src = 0, in_weights = 1, in_bias = 2 };
enum Out : int { out_dst = 0, out_pooled = 1 };
enum Attr : int { attr_stride = 0, attr_pad_t = 1, attr_pad_l = 2, attr_pad_b = 3, attr_pad_r = 4, attr_act = 5 };
}
namespace bn_stats {
enum In : int { in_src = 0 };
enum Out : int { out_mean = 0, out_inv_std = 1 };
enum Update : int { upd_running_mean = 0, upd_running_var = 1 };
enum Attr : int { attr_eps = 0, attr_momentum = 1 };
}
namespace bn_inv_std {
enum In : int { in_var = 0 };
enum Out : int { out_inv_std = 0 };
enum Attr : int { attr_eps = 0 };
}
namespace bn_apply {
enum In : int { in_src = 0, in_mean = 1, in_inv_std = 2, in_scale = 3, in_shift = 4 };
enum Out : int { out_dst = 0 };
enum Attr : int { attr_batch_stats = 0 };
}
namespace bn_bwd_reduce {
enum In : int { in_diff_dst = 0, in_src = 1, in_mean = 2, in_inv_std = 3 };
enum Out : int { out_diff_scale = 0, out_diff_shift = 1 };
}
namespace bn_bwd_apply {
enum In : int { in_diff_dst = 0, in_src = 1, in_mean = 2, in_inv_std = 3, in_scale = 4, in_diff_scale = 5, in_diff_shift = 6 };
enum Out : int { out_diff_src = 0 };
enum Attr : int { attr_batch_stats = 0 };
}
namespace activation {
enum In : int { in_src = 0 };
enum Out : int { out_dst = 0 };
enum Attr : int { attr_act = 0 };
}
namespace activation_bwd {
enum In : int { in_diff_dst = 0, in_src = 1 };
enum Out : int { out_diff_src = 0 };
enum Attr : int { attr_act = 0 };
}
namespace global_avg_pool {
enum In : int { in_src = 0 };
enum Out : int { out_dst = 0 };
}
namespace global_avg_pool_bwd {
enum In : int { in_diff_dst = 0 };
enum Out : int { out_diff_src = 0 };
}
namespace channel_scale {
enum In : int { in_src = 0, in_gate = 1 };
enum Out : int { out_dst = 0 };
}
namespace channel_scale_bwd_gate {
enum In : int { in_diff_dst = 0, in_src = 1 };
enum Out : int { out_diff_gate = 0 };
}
namespace add {
enum In : int { in_src0 = 0, in_src1 = 1 };
enum Out : int { out_dst = 0 };
}
namespace drop_path {
enum In : int { in_src = 0 };
enum Out : int { out_dst = 0 };
enum Attr : int { attr_drop_rate = 0, attr_rng_stream = 1 };
}
namespace dropout {
enum In : int { in_src = 0 };
enum Out : int { out_dst = 0 };
enum Attr : int { attr_drop_rate = 0, attr_rng_stream = 1 };
}
namespace linear {
enum In : int { in_src = 0, in_weights = 1, in_bias = 2 };
enum Out : int { out_dst = 0 };
}
namespace linear_bwd_data {
enum In : int { in_diff_dst = 0, in_weights = 1 };
enum Out : int { out_diff_src = 0 };
}
namespace linear_bwd_weights {
enum In : int { in_src = 0, in_diff_dst = 1 };
enum Out : int { out_diff_weights = 0, out_diff_bias = 1 };
}
namespace softmax_cross_entropy {
enum In : int { in_logits = 0, in_labels = 1 };
enum Out : int { out_loss = 0, out_diff_logits = 1, out_rank = 2 };
enum Attr : int { attr_label_smoothing = 0 };
}
namespace softmax {
enum In : int { in_logits = 0 };
enum Out : int { out_probs = 0 };
}
namespace bn_act {
enum In : int { in_src = 0, in_mean = 1, in_inv_std = 2, in_scale = 3, in_shift = 4, in_gate = 5, in_residual = 6 };
enum Out : int { out_dst = 0 };
enum Attr : int { attr_act = 0, attr_drop_rate = 1, attr_rng_stream = 2, attr_batch_stats = 3 };
}
namespace bn_act_pool {
enum In : int { in_src = 0, in_mean = 1, in_inv_std = 2, in_scale = 3, in_shift = 4 };
enum Out : int { out_pooled = 0, out_dst = 1 };
enum Attr : int { attr_act = 0, attr_batch_stats = 1 };
}
namespace bn_act_bwd_reduce {
enum In : int { in_diff_dst = 0, in_src = 1, in_mean = 2, in_inv_std = 3, in_scale = 4, in_shift = 5, in_gate = 6, in_diff_pooled = 7 };
enum Out : int { out_diff_scale = 0, out_diff_shift = 1 };
enum Attr : int { attr_act = 0, attr_drop_rate = 1, attr_rng_stream = 2 };
}
namespace bn_act_bwd_apply {
enum In : int { in_diff_dst = 0, in_src = 1, in_mean = 2, in_inv_std = 3, in_scale = 4, in_shift = 5, in_diff_scale = 6, in_diff_shift = 7, in_gate = 8, in_diff_pooled = 9 };
enum Out : int { out_diff_src = 0 };
enum Attr : int { attr_act = 0, attr_drop_rate = 1, attr_rng_stream = 2, attr_batch_stats = 3 };
}
namespace bn_act_bwd_gate {
enum In : int { in_diff_dst = 0, in_src = 1, in_mean = 2, in_inv_std = 3, in_scale = 4, in_shift = 5 };
enum Out : int { out_diff_gate = 0 };
enum Attr : int { attr_act = 0 };
}
namespace se_gate {
enum In : int { in_pooled = 0, in_weights0 = 1, in_bias0 = 2, in_weights1 = 3, in_bias1 = 4 };
enum Out : int { out_gate = 0, out_hidden = 1 };
enum Attr : int { attr_act = 0 };
}
namespace se_gate_bwd {
enum In : int { in_diff_gate = 0, in_pooled = 1, in_hidden = 2, in_gate = 3, in_weights0 = 4, in_weights1 = 5 };
enum Out : int { out_diff_pooled = 0, out_diff_weights0 = 1, out_diff_bias0 = 2, out_diff_weights1 = 3, out_diff_bias1 = 4 };
enum Attr : int { attr_act = 0 };
}
namespace fold_bn {
enum In : int { in_weights = 0, in_scale = 1, in_shift = 2, in_running_mean = 3, in_running_var = 4 };
enum Out : int { out_folded_weights = 0, out_folded_bias = 1 };
enum Attr : int { attr_eps = 0, attr_depthwise = 1 };
}
namespace grad_norm {
enum In : int { in_grad = 0 };
enum Out : int { out_norm = 0 };
}
namespace optimizer_sgd {
enum In : int { in_norm = 0, in_grad = 1 };
enum Update : int { upd_param = 0 };
enum Attr : int { attr_decay_mult = 0, attr_nesterov = 1, attr_ema = 2 };
}
namespace optimizer_rmsprop {
enum In : int { in_norm = 0, in_grad = 1 };
enum Update : int { upd_param = 0 };
enum Attr : int { attr_decay_mult = 0, attr_tf_form = 1, attr_ema = 2 };
}
namespace optimizer_adamw {
enum In : int { in_norm = 0, in_grad = 1 };
enum Update : int { upd_param = 0 };
enum Attr : int { attr_decay_mult = 0, attr_ema = 1 };
}
namespace ema_update {
enum In : int { in_src = 0 };
}
namespace fill {
enum Out : int { out_dst = 0 };
enum Attr : int { attr_value = 0 };
}
namespace bn_act_bwd_sums {
enum In : int { in_diff_dst = 0, in_src = 1, in_mean = 2, in_inv_std = 3, in_scale = 4, in_shift = 5, in_gate = 6 };
enum Out : int { out_diff_gate = 0, out_sums = 1, out_dst = 2 };
enum Attr : int { attr_act = 0, attr_drop_rate = 1, attr_rng_stream = 2 };
}
namespace bn_act_bwd_merge {
enum In : int { in_sums = 0, in_gate = 1, in_diff_pooled = 2 };
enum Out : int { out_diff_scale = 0, out_diff_shift = 1 };
enum Attr : int { attr_pixels = 0 };
}
namespace depthwise_conv2d_stats {
enum In : int { in_src = 0, in_weights = 1, in_src_mean = 2, in_src_inv_std = 3, in_src_scale = 4, in_src_shift = 5 };
enum Out : int { out_dst = 0, out_mean = 1, out_inv_std = 2 };
enum Update : int { upd_running_mean = 0, upd_running_var = 1 };
enum Attr : int { attr_stride = 0, attr_pad_t = 1, attr_pad_l = 2, attr_pad_b = 3, attr_pad_r = 4, attr_eps = 5, attr_momentum = 6, attr_src_act = 7 };
}
namespace depthwise_conv2d_bwd {
enum In : int { in_src = 0, in_diff_dst = 1, in_weights = 2, in_src_mean = 3, in_src_inv_std = 4, in_src_scale = 5, in_src_shift = 6, in_dst = 7, in_mean = 8, in_inv_std = 9, in_scale = 10, in_shift = 11, in_diff_scale = 12, in_diff_shift = 13, in_gate = 14, in_diff_pooled = 15 };
enum Out : int { out_diff_src = 0, out_diff_weights = 1, out_src_diff_scale = 2, out_src_diff_shift = 3 };
enum Attr : int { attr_stride = 0, attr_pad_t = 1, attr_pad_l = 2, attr_pad_b = 3, attr_pad_r = 4, attr_src_act = 5, attr_act = 6 };
}
namespace expand_depthwise_bias_act {
enum In : int { in_src = 0, in_weights = 1, in_bias = 2, in_depthwise_weights = 3, in_depthwise_bias = 4 };
enum Out : int { out_dst = 0, out_pooled = 1 };
enum Attr : int { attr_expand_act = 0, attr_stride = 1, attr_pad_t = 2, attr_pad_l = 3, attr_pad_b = 4, attr_pad_r = 5, attr_act = 6 };
}
namespace conv2d_stats {
enum In : int { in_src = 0, in_weights = 1, in_gate = 2, in_src_mean = 3, in_src_inv_std = 4, in_src_scale = 5, in_src_shift = 6 };
enum Out : int { out_dst = 0, out_mean = 1, out_inv_std = 2 };
enum Update : int { upd_running_mean = 0, upd_running_var = 1 };
enum Attr : int { attr_stride = 0, attr_pad_t = 1, attr_pad_l = 2, attr_pad_b = 3, attr_pad_r = 4, attr_eps = 5, attr_momentum = 6, attr_src_act = 7 };
}
namespace conv2d_bwd {
enum In : int { in_src = 0, in_weights = 1, in_diff_dst = 2, in_dst = 3, in_mean = 4, in_inv_std = 5, in_scale = 6, in_shift = 7, in_diff_scale = 8, in_diff_shift = 9, in_gate = 10, in_src_mean = 11, in_src_inv_std = 12, in_src_scale = 13, in_src_shift = 14, in_addend = 15, in_end_src = 16, in_end_mean = 17, in_end_inv_std = 18 };
enum Out : int { out_diff_src = 0, out_diff_weights = 1, out_src_diff_scale = 2, out_src_diff_shift = 3, out_diff_gate = 4, out_sums = 5 };
enum Attr : int { attr_stride = 0, attr_pad_t = 1, attr_pad_l = 2, attr_pad_b = 3, attr_pad_r = 4, attr_act = 5, attr_drop_rate = 6, attr_rng_stream = 7, attr_batch_stats = 8, attr_src_act = 9, attr_end_drop_rate = 10, attr_end_rng_stream = 11 };
}
namespace input_conv2d_stats {
enum In : int { in_src = 0, in_weights = 1 };
enum Out : int { out_dst = 0, out_mean = 1, out_inv_std = 2 };
enum Update : int { upd_running_mean = 0, upd_running_var = 1 };
enum Attr : int { attr_stride = 0, attr_pad_t = 1, attr_pad_l = 2, attr_pad_b = 3, attr_pad_r = 4, attr_eps = 5, attr_momentum = 6, attr_mean0 = 7, attr_mean1 = 8, attr_mean2 = 9, attr_std0 = 10, attr_std1 = 11, attr_std2 = 12 };
}
namespace input_conv2d_bias_act {
enum In : int { in_src = 0, in_weights = 1, in_bias = 2 };
enum Out : int { out_dst = 0 };
enum Attr : int { attr_stride = 0, attr_pad_t = 1, attr_pad_l = 2, attr_pad_b = 3, attr_pad_r = 4, attr_act = 5, attr_mean0 = 6, attr_mean1 = 7, attr_mean2 = 8, attr_std0 = 9, attr_std1 = 10, attr_std2 = 11 };
}
namespace input_conv2d_bwd_weights {
enum In : int { in_src = 0, in_diff_dst = 1 };
enum Out : int { out_diff_weights = 0 };
enum Attr : int { attr_stride = 0, attr_pad_t = 1, attr_pad_l = 2, attr_pad_b = 3, attr_pad_r = 4, attr_mean0 = 5, attr_mean1 = 6, attr_mean2 = 7, attr_std0 = 8, attr_std1 = 9, attr_std2 = 10 };
}
}  // namespace effnet::op
