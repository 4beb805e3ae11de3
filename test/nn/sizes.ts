/** Parameter counts and multiply-accumulates measured with timm 1.0.29, torchvision 0.28 and NVIDIA's PyTorch trainer. */
export interface SizeRow {
  name: string
  size: number
  params: number
  /** Running means and variances. */
  stats: number
  /** Entries of the torch state_dict, `num_batches_tracked` included. */
  tensors: number
  macs: number
}

const row = (name: string, size: number, params: number, stats: number, tensors: number, macs: number): SizeRow => ({
  name,
  size,
  params,
  stats,
  tensors,
  macs,
})

export const SIZES: SizeRow[] = [
  row('efficientnet_b0', 224, 5288548, 42016, 360, 385814752),
  row('efficientnet_b1', 240, 7794184, 62048, 508, 686802832),
  row('efficientnet_b2', 260, 9109994, 67568, 508, 993561872),
  row('efficientnet_b3', 300, 12233232, 87296, 574, 1827141392),
  row('efficientnet_b4', 380, 19341616, 125200, 706, 4393771024),
  row('efficientnet_b5', 456, 30389784, 172736, 854, 10266384752),
  row('efficientnet_b6', 528, 43040704, 224432, 986, 19067593536),
  row('efficientnet_b7', 600, 66347960, 310720, 1200, 37745884192),
  row('efficientnet_b8', 672, 87413142, 380032, 1332, 62597461568),
  row('efficientnet_l2', 800, 480309308, 1090688, 1914, 475703653280),
  row('efficientnet_l2', 475, 480309308, 1090688, 1914, 170892857680),
  row('efficientnet_widese_b0', 224, 8423848, 42016, 360, 388948192),
  row('efficientnet_widese_b1', 240, 13336204, 62048, 508, 692342032),
  row('efficientnet_widese_b2', 260, 15678504, 67568, 508, 1000127312),
  row('efficientnet_widese_b3', 300, 21530032, 87296, 574, 1836434192),
  row('efficientnet_widese_b4', 380, 34927246, 125200, 706, 4409350864),
  row('efficientnet_widese_b5', 456, 56146944, 172736, 854, 10292133872),
  row('efficientnet_widese_b6', 528, 80444154, 224432, 986, 19104986496),
  row('efficientnet_widese_b7', 600, 125844160, 310720, 1200, 37805365792),
  row('efficientnetv2_s', 300, 21458488, 153872, 782, 5307561248),
  row('efficientnetv2_s', 384, 21458488, 153872, 782, 8365617152),
  row('efficientnetv2_m', 384, 54139356, 292032, 1120, 15736775680),
  row('efficientnetv2_m', 480, 54139356, 292032, 1120, 24582460384),
  row('efficientnetv2_l', 384, 118515272, 512576, 1548, 35899418624),
  row('efficientnetv2_l', 480, 118515272, 512576, 1548, 56079699008),
  row('efficientnetv2_xl', 384, 208119808, 777024, 1990, 52529254400),
  row('efficientnetv2_xl', 512, 208119808, 777024, 1990, 93353451520),
  row('efficientnetv2_b0', 192, 7139704, 60608, 420, 528186752),
  row('efficientnetv2_b0', 224, 7139704, 60608, 420, 718086176),
  row('efficientnetv2_b1', 240, 8141052, 71072, 516, 1196819360),
  row('efficientnetv2_b2', 260, 10096086, 82288, 538, 1697542832),
  row('efficientnetv2_b3', 300, 14358406, 109216, 626, 3011458816),
  row('efficientnet_lite0', 224, 4652008, 42016, 296, 385187552),
  row('efficientnet_lite1', 240, 5416680, 53664, 386, 600185232),
  row('efficientnet_lite2', 260, 6092072, 58096, 386, 859736272),
  row('efficientnet_lite3', 280, 8197096, 76672, 440, 1383321872),
  row('efficientnet_lite3', 300, 8197096, 76672, 440, 1607554544),
  row('efficientnet_lite4', 300, 13006568, 112368, 548, 2553034336),
  row('efficientnet_lite4', 380, 13006568, 112368, 548, 3943564112),
]
