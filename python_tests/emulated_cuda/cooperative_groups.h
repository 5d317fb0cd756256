// The emulated CUDA (cuda_runtime.h) has no clusters.
#pragma once
