// What candle makes of several operations on an NVIDIA GPU, each in one kernel: the twins of the CPU's, with the same meaning of
// shapes. Tensors are contiguous, `t` is the number format of all that are not said to be f32; sums are f32.
//
// Nothing here depends on what else is in a batch. Everything but the products' one instruction is plain C++, and the tests run it
// on the CPU: see tests/emulated/.

#include <cstdint>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace {

__device__ inline float widen(float x) { return x; }
__device__ inline float widen(__half x) { return __half2float(x); }
__device__ inline float widen(__nv_bfloat16 x) { return __bfloat162float(x); }

__device__ inline void narrow(float x, float& y) { y = x; }
__device__ inline void narrow(float x, __half& y) { y = __float2half_rn(x); }
__device__ inline void narrow(float x, __nv_bfloat16& y) { y = __float2bfloat16_rn(x); }

__device__ inline uint32_t bits(__half x) { return __half_as_ushort(x); }
__device__ inline uint32_t bits(__nv_bfloat16 x) { return __bfloat16_as_ushort(x); }

// The first of a thread's indices, and how far it is to the next one.
__device__ inline int64_t first_index() { return int64_t(blockIdx.x) * blockDim.x + threadIdx.x; }
__device__ inline int64_t index_stride() { return int64_t(gridDim.x) * blockDim.x; }

constexpr int WARP = 32;
constexpr unsigned ALL_LANES = 0xffffffffu;

// ------------------------------------------------------------------------------------------------------------ group norm

// Threads of a block, and values that one block takes.
constexpr int NORM_THREADS = 256;
constexpr int64_t PART = 8192;

// The sum of `value` over the block's threads, in all of them.
__device__ float block_sum(float value) {
    __shared__ float of_warps[NORM_THREADS / WARP];
    for (int distance = WARP / 2; distance > 0; distance /= 2) {
        value += __shfl_xor_sync(ALL_LANES, value, distance);
    }
    // Those of the sum before have been read.
    __syncthreads();
    if (threadIdx.x % WARP == 0) {
        of_warps[threadIdx.x / WARP] = value;
    }
    __syncthreads();
    float sum = 0;
    for (int warp = 0; warp < NORM_THREADS / WARP; warp++) {
        sum += of_warps[warp];
    }
    return sum;
}

// Where one block finds its part of one group of one row.
struct Part {
    int64_t group;     // of all rows
    int64_t begin;     // within the group
    int64_t end;
    int64_t size;      // of the whole group
    int64_t first;     // the group's first value
    int channel;       // the group's first, of the row
    int64_t row;

    __device__ Part(int channels, int64_t plane, int groups)
        : group(blockIdx.x), begin(blockIdx.y * PART), size(channels / groups * plane), first(group * size),
          channel(int(group % groups) * (channels / groups)), row(group / groups) {
        end = begin + PART < size ? begin + PART : size;
    }
};

// Mean and sum of squared distances from it, of each part of `x (b, c, plane)` plus `shift (b, c)`, if there is one:
// `statistics (b * groups, parts, 2)` f32.
template <class T>
__device__ void group_statistics(const T* x, const T* shift, float* statistics, int channels, int64_t plane, int groups) {
    Part part(channels, plane, groups);
    auto value = [&](int64_t index) {
        float y = widen(x[part.first + index]);
        return shift ? y + widen(shift[part.row * channels + part.channel + index / plane]) : y;
    };
    // Distances from a value of the part keep the digits that a large mean would take.
    float pivot = value(part.begin);
    float sum = 0, squares = 0;
    for (int64_t index = part.begin + threadIdx.x; index < part.end; index += NORM_THREADS) {
        float distance = value(index) - pivot;
        sum += distance;
        squares += distance * distance;
    }
    sum = block_sum(sum);
    squares = block_sum(squares);
    if (threadIdx.x == 0) {
        float count = float(part.end - part.begin);
        float* mine = statistics + (part.group * gridDim.y + blockIdx.y) * 2;
        mine[0] = pivot + sum / count;
        mine[1] = fmaxf(squares - sum * sum / count, 0.0f);
    }
}

// `x (b, c, plane)` plus `shift`, normalised by those statistics, times a weight and plus a bias per channel, `affine (2, c)`, then
// SiLU if `silu`: `y (b, c, plane)`.
//
// Parts are put together as by Chan, Golub and LeVeque, "Algorithms for computing the sample variance" (1983).
template <class T>
__device__ void group_apply(
    const T* x, const T* shift, const T* affine, const float* statistics, T* y, int channels, int64_t plane, int groups, float eps,
    int silu) {
    Part part(channels, plane, groups);
    int parts = gridDim.y;
    const float* all = statistics + part.group * parts * 2;
    auto count = [&](int index) { return float(index + 1 < parts ? PART : part.size - index * PART); };
    float mean = 0;
    for (int index = threadIdx.x; index < parts; index += NORM_THREADS) {
        mean += all[2 * index] * (count(index) / float(part.size));
    }
    mean = block_sum(mean);
    float squares = 0;
    for (int index = threadIdx.x; index < parts; index += NORM_THREADS) {
        float distance = all[2 * index] - mean;
        squares += all[2 * index + 1] + distance * distance * count(index);
    }
    float inverse = rsqrtf(block_sum(squares) / float(part.size) + eps);
    for (int64_t index = part.begin + threadIdx.x; index < part.end; index += NORM_THREADS) {
        int channel = part.channel + int(index / plane);
        float value = widen(x[part.first + index]);
        if (shift) {
            value += widen(shift[part.row * channels + channel]);
        }
        value = (value - mean) * inverse * widen(affine[channel]) + widen(affine[channels + channel]);
        narrow(silu ? value / (1.0f + expf(-value)) : value, y[part.first + index]);
    }
}

// ------------------------------------------------------------------------------------------------------- norms of tokens

// Threads of a block: tokens, and threads that share each token's channels.
constexpr int NORM_TOKENS = 32;
constexpr int NORM_LINES = 16;

// The sum of `value` over the threads that share a token, in all of them.
__device__ float token_sum(float value) {
    __shared__ float of_lines[NORM_LINES][NORM_TOKENS];
    __syncthreads();
    of_lines[threadIdx.y][threadIdx.x] = value;
    __syncthreads();
    float sum = 0;
    for (int line = 0; line < NORM_LINES; line++) {
        sum += of_lines[line][threadIdx.x];
    }
    return sum;
}

// `x (b, d, t)`, each token divided by the root of the mean square of its channels, from their mean on if `centre`, times
// `weight (d)` and plus `bias (d)`, if there is one; those of the next row stand `affine_stride` further on.
template <class T>
__device__ void token_norm(
    const T* x, const T* weight, const T* bias, int64_t affine_stride, T* y, int width, int tokens, float eps, int centre) {
    int token = blockIdx.x * NORM_TOKENS + threadIdx.x;
    int64_t row = blockIdx.y;
    int64_t first = row * width * tokens + token;
    // Threads beyond the last token go on, for the others wait for them.
    int end = token < tokens ? width : 0;
    float mean = 0;
    if (centre) {
        for (int channel = threadIdx.y; channel < end; channel += NORM_LINES) {
            mean += widen(x[first + int64_t(channel) * tokens]);
        }
        mean = token_sum(mean) / width;
    }
    float square = 0;
    for (int channel = threadIdx.y; channel < end; channel += NORM_LINES) {
        float distance = widen(x[first + int64_t(channel) * tokens]) - mean;
        square += distance * distance;
    }
    float inverse = rsqrtf(token_sum(square) / width + eps);
    weight += row * affine_stride;
    bias += bias ? row * affine_stride : 0;
    for (int channel = threadIdx.y; channel < end; channel += NORM_LINES) {
        int64_t index = first + int64_t(channel) * tokens;
        float value = (widen(x[index]) - mean) * inverse * widen(weight[channel]);
        narrow(bias ? value + widen(bias[channel]) : value, y[index]);
    }
}

// --------------------------------------------------------------------------------------------------------- value by value

// As `darkroom::engine::kernels::Gelu` has them.
__device__ inline float gelu_erf(float x) { return 0.5f * x * (1.0f + erff(x * 0.70710678f)); }
__device__ inline float gelu_tanh(float x) { return x / (1.0f + expf(-1.5957691f * (x + 0.044715f * x * x * x))); }
__device__ inline float quick_gelu(float x) { return x / (1.0f + expf(-1.702f * x)); }

template <class T> __device__ void gelu(T* x, int64_t count, int kind) {
    for (int64_t index = first_index(); index < count; index += index_stride()) {
        float value = widen(x[index]);
        narrow(kind == 0 ? gelu_erf(value) : kind == 1 ? gelu_tanh(value) : quick_gelu(value), x[index]);
    }
}

// `x (b, 2 half)` to `y (b, half)`: the first half times the GELU of the second.
template <class T> __device__ void gated_gelu(const T* x, T* y, int64_t count, int64_t half) {
    for (int64_t index = first_index(); index < count; index += index_stride()) {
        const T* value = x + index / half * 2 * half + index % half;
        narrow(widen(value[0]) * gelu_erf(widen(value[half])), y[index]);
    }
}

template <class T> __device__ void add(T* target, const T* other, int64_t count) {
    for (int64_t index = first_index(); index < count; index += index_stride()) {
        narrow(widen(target[index]) + widen(other[index]), target[index]);
    }
}

// A block for each line of `target (lines, plane)`, to which the value of its channel is added, one of `channels`.
template <class T> __device__ void add_channel(T* target, const T* other, int channels, int plane) {
    T* line = target + int64_t(blockIdx.x) * plane;
    float value = widen(other[blockIdx.x % channels]);
    for (int index = blockIdx.y * blockDim.x + threadIdx.x; index < plane; index += gridDim.y * blockDim.x) {
        narrow(widen(line[index]) + value, line[index]);
    }
}

// The same with a factor for each line, `gate (lines)`, and a tensor of the same shape that is added.
template <class T> __device__ void gated_add(T* target, const T* gate, const T* other, int plane) {
    int64_t first = int64_t(blockIdx.x) * plane;
    float factor = widen(gate[blockIdx.x]);
    for (int index = blockIdx.y * blockDim.x + threadIdx.x; index < plane; index += gridDim.y * blockDim.x) {
        narrow(widen(target[first + index]) * factor + widen(other[first + index]), target[first + index]);
    }
}

// Turns pairs of neighbouring channels of `target (n, d, t)` by angles whose cosines and sines are `turns (2, d / 2, t)` f32.
template <class T> __device__ void rotate(T* target, const float* turns, int64_t pairs, int64_t pairs_of_head, int tokens) {
    for (int64_t index = first_index(); index < pairs; index += index_stride()) {
        int64_t angle = index % pairs_of_head;
        float cosine = turns[angle], sine = turns[pairs_of_head + angle];
        T* first = target + index / tokens * 2 * tokens + index % tokens;
        float x = widen(first[0]), y = widen(first[tokens]);
        narrow(x * cosine - y * sine, first[0]);
        narrow(y * cosine + x * sine, first[tokens]);
    }
}

// ------------------------------------------------------------------------------------------------------ order of channels

// The side of the square that a block turns, lines of its threads, and values between two lines of shared memory, so that those
// below each other lie in different banks.
constexpr int TURNED = 32;
constexpr int TURNED_LINES = 8;
constexpr int TURNED_GAP = 2;

// `x (b, rows, columns)` to `y (b, columns, rows)`, plus `bias (columns)`, if there is one.
template <class T> __device__ void transpose(const T* x, const T* bias, T* y, int rows, int columns) {
    __shared__ T square[TURNED][TURNED + TURNED_GAP];
    int across = (columns + TURNED - 1) / TURNED;
    int row = int(blockIdx.x / across) * TURNED, column = int(blockIdx.x % across) * TURNED;
    int64_t first = int64_t(blockIdx.y) * rows * columns;
    for (int line = threadIdx.y; line < TURNED; line += TURNED_LINES) {
        if (row + line < rows && column + int(threadIdx.x) < columns) {
            square[line][threadIdx.x] = x[first + int64_t(row + line) * columns + column + threadIdx.x];
        }
    }
    __syncthreads();
    for (int line = threadIdx.y; line < TURNED; line += TURNED_LINES) {
        if (column + line < columns && row + int(threadIdx.x) < rows) {
            T value = square[threadIdx.x][line];
            int64_t index = first + int64_t(column + line) * rows + row + threadIdx.x;
            if (bias) {
                narrow(widen(value) + widen(bias[column + line]), y[index]);
            } else {
                y[index] = value;
            }
        }
    }
}

// -------------------------------------------------------------------------------------------------------------- attention

// Queries of a block, 16 to a warp, and keys that are looked at together.
constexpr int QUERIES = 64;
constexpr int KEYS = 64;
constexpr int ATTENTION_THREADS = QUERIES / 16 * WARP;
// Values between two lines of shared memory, so that those below each other lie in different banks.
constexpr int GAP = 8;

#ifdef __CUDACC__
// `sums (16, 8) += left (16, 16) @ right (16, 8)`, shared among the lanes of a warp as the PTX manual says of `mma.m16n8k16`:
// of lane `4 g + i`, `sums` are those of the lines `g` and `g + 8` in the columns `2 i` and `2 i + 1`.
__device__ inline void multiply(float (&sums)[4], const uint32_t (&left)[4], const uint32_t (&right)[2], __half) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right[0]), "r"(right[1]));
}
__device__ inline void multiply(float (&sums)[4], const uint32_t (&left)[4], const uint32_t (&right)[2], __nv_bfloat16) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right[0]), "r"(right[1]));
}
#endif

template <class T> __device__ inline uint32_t pair(float low, float high) {
    T first, second;
    narrow(low, first);
    narrow(high, second);
    return bits(first) | bits(second) << 16;
}

// Two values that lie next to each other.
template <class T> __device__ inline uint32_t pair_at(const T* values) { return *reinterpret_cast<const uint32_t*>(values); }

// `KEYS` tokens from `first` on of `x (width, tokens)`, zeros where there are none, with so many values from one channel to the next
// in `tile`, and from one token to the next.
template <int CHANNELS, int CHANNEL_STEP, int TOKEN_STEP, class T>
__device__ void load_tile(T* tile, const T* x, int width, int tokens, int first) {
    T zero;
    narrow(0.0f, zero);
    for (int index = threadIdx.x; index < CHANNELS * KEYS; index += ATTENTION_THREADS) {
        int channel = index / KEYS, token = index % KEYS;
        bool inside = channel < width && first + token < tokens;
        tile[channel * CHANNEL_STEP + token * TOKEN_STEP] = inside ? x[int64_t(channel) * tokens + first + token] : zero;
    }
}

// The largest or the sum of the four lanes that share a line.
__device__ inline float line_maximum(float value) {
    value = fmaxf(value, __shfl_xor_sync(ALL_LANES, value, 1));
    return fmaxf(value, __shfl_xor_sync(ALL_LANES, value, 2));
}
__device__ inline float line_sum(float value) {
    value += __shfl_xor_sync(ALL_LANES, value, 1);
    return value + __shfl_xor_sync(ALL_LANES, value, 2);
}

// `query (n, width, queries)` attends to `key` and `value (n, width, keys)`: `output (n, width, queries)`. A block has some queries
// of one of the `n`. `STEPS` times 16 channels are computed with, of which those from `width` on are zeros; `scale` is times
// the logarithm of e to the base 2.
//
// Dao, "FlashAttention-2: Faster attention with better parallelism and work partitioning" (2023).
template <int STEPS, class T>
__device__ void attention(
    const T* query, const T* key, const T* value, T* output, int width, int queries, int keys, float scale) {
    constexpr int CHANNELS = STEPS * 16;
    constexpr int TOKEN_STEP = CHANNELS + GAP, CHANNEL_STEP = KEYS + GAP;
    // Tokens below each other: queries to begin with, then keys.
    __shared__ __align__(16) T token_tile[KEYS * TOKEN_STEP];
    // Channels below each other: values, in the end the outputs.
    __shared__ __align__(16) T channel_tile[CHANNELS * CHANNEL_STEP];
    static_assert(QUERIES == KEYS, "tiles hold either");
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    int g = lane / 4, i = lane % 4;
    int first_query = blockIdx.x * QUERIES;
    int64_t head = blockIdx.y;
    query += head * width * queries;
    output += head * width * queries;
    key += head * width * keys;
    value += head * width * keys;

    load_tile<CHANNELS, 1, TOKEN_STEP>(token_tile, query, width, queries, first_query);
    __syncthreads();
    uint32_t left[STEPS][4];
    for (int step = 0; step < STEPS; step++) {
        const T* corner = token_tile + (warp * 16 + g) * TOKEN_STEP + step * 16 + 2 * i;
        left[step][0] = pair_at(corner);
        left[step][1] = pair_at(corner + 8 * TOKEN_STEP);
        left[step][2] = pair_at(corner + 8);
        left[step][3] = pair_at(corner + 8 * TOKEN_STEP + 8);
    }

    float sums[2 * STEPS][4] = {};
    // Of the lines `g` and `g + 8`.
    float largest[2] = {-INFINITY, -INFINITY};
    float total[2] = {0, 0};
    for (int first_key = 0; first_key < keys; first_key += KEYS) {
        __syncthreads();
        load_tile<CHANNELS, 1, TOKEN_STEP>(token_tile, key, width, keys, first_key);
        load_tile<CHANNELS, CHANNEL_STEP, 1>(channel_tile, value, width, keys, first_key);
        __syncthreads();

        float scores[KEYS / 8][4] = {};
#pragma unroll
        for (int tile = 0; tile < KEYS / 8; tile++) {
#pragma unroll
            for (int step = 0; step < STEPS; step++) {
                const T* corner = token_tile + (tile * 8 + g) * TOKEN_STEP + step * 16 + 2 * i;
                uint32_t right[2] = {pair_at(corner), pair_at(corner + 8)};
                multiply(scores[tile], left[step], right, T());
            }
        }

        float maximum[2] = {largest[0], largest[1]};
#pragma unroll
        for (int tile = 0; tile < KEYS / 8; tile++) {
#pragma unroll
            for (int index = 0; index < 4; index++) {
                bool inside = first_key + tile * 8 + 2 * i + index % 2 < keys;
                scores[tile][index] = inside ? scores[tile][index] * scale : -INFINITY;
                maximum[index / 2] = fmaxf(maximum[index / 2], scores[tile][index]);
            }
        }
#pragma unroll
        for (int line = 0; line < 2; line++) {
            maximum[line] = line_maximum(maximum[line]);
            float factor = exp2f(largest[line] - maximum[line]);
            largest[line] = maximum[line];
            total[line] *= factor;
#pragma unroll
            for (int tile = 0; tile < 2 * STEPS; tile++) {
                sums[tile][2 * line] *= factor;
                sums[tile][2 * line + 1] *= factor;
            }
        }
#pragma unroll
        for (int tile = 0; tile < KEYS / 8; tile++) {
#pragma unroll
            for (int index = 0; index < 4; index++) {
                scores[tile][index] = exp2f(scores[tile][index] - largest[index / 2]);
                total[index / 2] += scores[tile][index];
            }
        }

        // Where a lane has scores, there it wants them as factors.
#pragma unroll
        for (int step = 0; step < KEYS / 16; step++) {
            const float(&low)[4] = scores[2 * step], (&high)[4] = scores[2 * step + 1];
            uint32_t weights[4] = {
                pair<T>(low[0], low[1]), pair<T>(low[2], low[3]), pair<T>(high[0], high[1]), pair<T>(high[2], high[3])};
#pragma unroll
            for (int tile = 0; tile < 2 * STEPS; tile++) {
                const T* corner = channel_tile + (tile * 8 + g) * CHANNEL_STEP + step * 16 + 2 * i;
                uint32_t right[2] = {pair_at(corner), pair_at(corner + 8)};
                multiply(sums[tile], weights, right, T());
            }
        }
    }

    __syncthreads();
    for (int line = 0; line < 2; line++) {
        float inverse = 1.0f / line_sum(total[line]);
        for (int tile = 0; tile < 2 * STEPS; tile++) {
            for (int side = 0; side < 2; side++) {
                int channel = tile * 8 + 2 * i + side;
                narrow(
                    sums[tile][2 * line + side] * inverse,
                    channel_tile[channel * CHANNEL_STEP + warp * 16 + g + 8 * line]);
            }
        }
    }
    __syncthreads();
    for (int index = threadIdx.x; index < width * QUERIES; index += ATTENTION_THREADS) {
        int channel = index / QUERIES, token = index % QUERIES;
        if (first_query + token < queries) {
            output[int64_t(channel) * queries + first_query + token] = channel_tile[channel * CHANNEL_STEP + token];
        }
    }
}

} // namespace

// ------------------------------------------------------------------------------------------------------------------ names

#define FOR_FORMAT(T, FORMAT)                                                                                                    \
    extern "C" __global__ void __launch_bounds__(NORM_THREADS) group_statistics_##FORMAT(                                        \
        const T* x, const T* shift, float* statistics, int channels, int64_t plane, int groups) {                                \
        group_statistics(x, shift, statistics, channels, plane, groups);                                                         \
    }                                                                                                                            \
    extern "C" __global__ void __launch_bounds__(NORM_THREADS) group_apply_##FORMAT(                                             \
        const T* x, const T* shift, const T* affine, const float* statistics, T* y, int channels, int64_t plane, int groups,     \
        float eps, int silu) {                                                                                                   \
        group_apply(x, shift, affine, statistics, y, channels, plane, groups, eps, silu);                                        \
    }                                                                                                                            \
    extern "C" __global__ void __launch_bounds__(NORM_TOKENS* NORM_LINES) token_norm_##FORMAT(                                   \
        const T* x, const T* weight, const T* bias, int64_t affine_stride, T* y, int width, int tokens, float eps, int centre) { \
        token_norm(x, weight, bias, affine_stride, y, width, tokens, eps, centre);                                               \
    }                                                                                                                            \
    extern "C" __global__ void gelu_##FORMAT(T* x, int64_t count, int kind) { gelu(x, count, kind); }                            \
    extern "C" __global__ void gated_gelu_##FORMAT(const T* x, T* y, int64_t count, int64_t half) {                              \
        gated_gelu(x, y, count, half);                                                                                           \
    }                                                                                                                            \
    extern "C" __global__ void add_##FORMAT(T* target, const T* other, int64_t count) { add(target, other, count); }             \
    extern "C" __global__ void add_channel_##FORMAT(T* target, const T* other, int channels, int plane) {                        \
        add_channel(target, other, channels, plane);                                                                             \
    }                                                                                                                            \
    extern "C" __global__ void gated_add_##FORMAT(T* target, const T* gate, const T* other, int plane) {                         \
        gated_add(target, gate, other, plane);                                                                                   \
    }                                                                                                                            \
    extern "C" __global__ void rotate_##FORMAT(                                                                                  \
        T* target, const float* turns, int64_t pairs, int64_t pairs_of_head, int tokens) {                                       \
        rotate(target, turns, pairs, pairs_of_head, tokens);                                                                     \
    }                                                                                                                            \
    extern "C" __global__ void transpose_##FORMAT(const T* x, const T* bias, T* y, int rows, int columns) {                      \
        transpose(x, bias, y, rows, columns);                                                                                    \
    }

FOR_FORMAT(float, f32)
FOR_FORMAT(__half, f16)
FOR_FORMAT(__nv_bfloat16, bf16)

// The instruction that products are made of came with this architecture.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800

// Steps of 16 channels: up to 160, the widest heads of Stable Diffusion 1.5.
#define ATTENTION(STEPS, T, FORMAT)                                                                                              \
    extern "C" __global__ void __launch_bounds__(ATTENTION_THREADS) attention_##STEPS##_##FORMAT(                                \
        const T* query, const T* key, const T* value, T* output, int width, int queries, int keys, float scale) {                \
        attention<STEPS>(query, key, value, output, width, queries, keys, scale);                                                \
    }
#define ATTENTION_OF(STEPS) ATTENTION(STEPS, __half, f16) ATTENTION(STEPS, __nv_bfloat16, bf16)

ATTENTION_OF(1)
ATTENTION_OF(2)
ATTENTION_OF(3)
ATTENTION_OF(4)
ATTENTION_OF(5)
ATTENTION_OF(6)
ATTENTION_OF(8)
ATTENTION_OF(10)

#endif
