"""NVIDIA GPUs that are not here, as XLA's compiler wants to be told of them."""

from lmjax.planning import chips

# Of the H100's and the H200's processor, the same in both: compute capability 9.0, as NVIDIA's CUDA
# C++ Programming Guide lists its limits and the H100 white paper its units and caches.
HOPPER = dict(
  threads_per_block_limit=1024,
  threads_per_warp=32,
  shared_memory_per_block=48 * 1024,
  shared_memory_per_block_optin=227 * 1024,
  shared_memory_per_core=228 * 1024,
  threads_per_core_limit=2048,
  registers_per_core_limit=65_536,
  registers_per_block_limit=65_536,
  core_count=132,
  fpus_per_core=128,
  block_dim_limit_x=2**31 - 1,
  block_dim_limit_y=65_535,
  block_dim_limit_z=65_535,
  l2_cache_size=50 * 2**20,
  clock_rate_ghz=1.98,
)


def target(gpu: str) -> str:
  """The text of a stream_executor.GpuTargetConfigProto; gpu: h100 or h200."""
  chip = chips.CHIPS[gpu]
  found = HOPPER | dict(memory_bandwidth=int(chip.bandwidth), device_memory_size=int(chip.hbm))
  lines = '\n'.join(f'  {k}: {v}' for k, v in found.items())
  return (
    f'gpu_device_info {{\n{lines}\n  cuda_compute_capability {{ major: 9 }}\n}}\n'
    'platform_name: "CUDA"\ndnn_version_info { major: 9 minor: 10 }\n'
    f'device_description_str: "NVIDIA {gpu.upper()}"\n'
  )
