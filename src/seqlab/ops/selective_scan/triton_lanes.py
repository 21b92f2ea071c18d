"""Operations across the lanes of a program: shuffles, and copies from memory to shared memory ahead of their use.

Every tensor is (LANES,), one number for each lane: there is one layout, and the compiler converts nothing. What Triton
cannot express is a line of PTX. In the interpreter, and where dtypes differ or a slot takes too much memory, numbers
are loaded where they are used (STAGES is 0), with the same results.

Each warp has its own part of the program's shared memory, so no warp waits for another. Its ring of STAGES slots is
filled by asynchronous copies, each slot with all that one group of G positions needs: K tensors, rows of B and C and,
if wanted, states. While one group is processed, the next ones are being copied.
"""

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
LANES = tl.constexpr(128)  # of a program


@triton.jit
def shuffle(v, source):
    """(LANES,) the value of another lane of the same warp; ``source`` (LANES,) is its number in the program."""
    warps: tl.constexpr = LANES // 32
    within = tl.reshape(source % 32, [warps, 32])
    return tl.reshape(tl.gather(tl.reshape(v, [warps, 32]), within, 1), [LANES])


@triton.jit
def from_lane(v, j: tl.constexpr, G: tl.constexpr):
    """(LANES,) the value of the lane of position j, for every lane of the same G."""
    if G == 1:
        return v
    else:
        return shuffle(v, (tl.arange(0, LANES) & (LANES - G)) | j)


@triton.jit
def exchange(v, bit: tl.constexpr):
    """(LANES,) the value of the lane whose number differs in this bit."""
    return shuffle(v, tl.arange(0, LANES) ^ bit)


@triton.jit
def fold(low, high, bit: tl.constexpr):
    """Sum two values over pairs of lanes: lanes without the bit get the sum of low, the others that of high."""
    without = (tl.arange(0, LANES) & bit) == 0
    return tl.where(without, low, high) + exchange(tl.where(without, high, low), bit)


@triton.jit
def fold_list(values, K: tl.constexpr, bit: tl.constexpr):
    """Halve a list of K values by summing over pairs of lanes; a single value is summed in both lanes."""
    folded = ()
    if K == 1:
        folded = folded + (values[0] + exchange(values[0], bit),)
    else:
        for i in tl.static_range(K // 2):
            folded = folded + (fold(values[i], values[i + K // 2], bit),)
    return folded


@triton.jit
def reciprocal(x):
    """1 / x to the last bit but one; Triton's division handles subnormal x too, at three times the cost."""
    if INTERPRETED:
        return 1.0 / x
    else:
        return tl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, is_pure=True, pack=1)


@triton.constexpr_function
def ceil(a, b):
    """a / b, rounded up."""
    return -(-a // b)


@triton.constexpr_function
def row_bytes(S, CPT, ITEM):
    """Bytes of a warp's channels at one position of one tensor, with numbers of ITEM bytes."""
    return 32 // S * CPT * ITEM


@triton.constexpr_function
def part_bytes(S, CPT, ITEM):
    """Bytes of one copy by a lane: a row, or 16 bytes of it."""
    return min(32 // S * CPT * ITEM, 16)


@triton.constexpr_function
def input_rounds(K, S, CPT, ITEM):
    """Copies by all lanes that one group of K tensors takes."""
    return ceil(K * min(S, 4) * row_bytes(S, CPT, ITEM) // part_bytes(S, CPT, ITEM), 32)


@triton.constexpr_function
def input_bytes(K, S, CPT, ITEM):
    """Bytes of a group's inputs in a slot: whole rounds of copies."""
    return input_rounds(K, S, CPT, ITEM) * 32 * part_bytes(S, CPT, ITEM)


@triton.constexpr_function
def bc_rounds(S, M):
    """Copies by all lanes, 16 bytes each, that a group's rows of B and C take."""
    return ceil(min(S, 4) * 2 * S * M, 32)


@triton.constexpr_function
def slot_bytes(K, STATES, S, M, CPT, ITEM):
    """Bytes of a slot: inputs, rows of B and C, and STATES tiles of states."""
    return input_bytes(K, S, CPT, ITEM) + 512 * (bc_rounds(S, M) + STATES)


@triton.constexpr_function
def _words(count):
    return {1: "", 2: ".v2", 4: ".v4"}[count]


@triton.constexpr_function
def _list(first, count):
    registers = ", ".join(f"${first + i}" for i in range(count))
    return f"{{{registers}}}" if count > 1 else registers


@triton.constexpr_function
def _asm_of_ring(size):
    return f"{{ .shared .align 16 .b8 ring[{ceil(size, 16) * 16}]; mov.u32 $0, ring; }}"


@triton.constexpr_function
def _asm_of_copy(size, cache):
    return f"cp.async.{cache}.shared.global [$1], [$2], {size}, $3; mov.u32 $0, 0;"


@triton.constexpr_function
def _asm_of_await(pending):
    return f"cp.async.wait_group {pending}; bar.warp.sync 0xffffffff; mov.u32 $0, 0;"


@triton.constexpr_function
def _asm_of_read(count, kind, again):
    return f"ld{'.volatile' if again else ''}.shared{_words(count)}.{kind} {_list(0, count)}, [${count}];"


@triton.jit
def own_memory(BYTES: tl.constexpr):
    """(LANES,) the address of BYTES of shared memory of this warp's own. To be called once in a kernel."""
    each: tl.constexpr = ceil(BYTES, 16) * 16
    # A scalar, which has no layout and so is never duplicated: each duplicate would get memory of its own.
    whole = tl.inline_asm_elementwise(
        _asm_of_ring(each * (LANES // 32)), "=r,r", [tl.program_id(0)], tl.int32, is_pure=False, pack=1
    )
    return whole + tl.arange(0, LANES) // 32 * each


@triton.jit
def _copy(to, address, size, BYTES: tl.constexpr, CACHE: tl.constexpr):
    """Start to copy BYTES from memory at ``address`` to shared memory; ``size`` 0 writes zeros instead."""
    tl.inline_asm_elementwise(
        _asm_of_copy(BYTES, CACHE), "=r,r,l,r", [to, address, size], tl.int32, is_pure=False, pack=1
    )


@triton.jit
def _close_copies():
    """Commit the copies started since the last call as one group."""
    tl.inline_asm_elementwise(
        "cp.async.commit_group; mov.u32 $0, 0;", "=r,r", [tl.arange(0, LANES)], tl.int32, is_pure=False, pack=1
    )


@triton.jit
def await_copies(PENDING: tl.constexpr):
    """Wait until all groups of copies but the last PENDING are complete, for every lane of the warp."""
    tl.inline_asm_elementwise(_asm_of_await(PENDING), "=r,r", [tl.arange(0, LANES)], tl.int32, is_pure=False, pack=1)


@triton.jit
def sync():
    """Wait for the lanes of the warp and their writes."""
    tl.inline_asm_elementwise(
        "bar.warp.sync 0xffffffff; mov.u32 $0, 0;", "=r,r", [tl.arange(0, LANES)], tl.int32, is_pure=False, pack=1
    )


@triton.jit
def put(address, values, FIRST: tl.constexpr):
    """Write four float32 of ``values``, from FIRST on, to consecutive shared memory."""
    tl.inline_asm_elementwise(
        "st.shared.v4.f32 [$1], {$2, $3, $4, $5}; mov.u32 $0, 0;", "=r,r,f,f,f,f",
        [address, values[FIRST], values[FIRST + 1], values[FIRST + 2], values[FIRST + 3]],
        tl.int32, is_pure=False, pack=1,
    )  # fmt: skip


@triton.jit
def get(address, COUNT: tl.constexpr, AGAIN: tl.constexpr = False):
    """COUNT (1, 2 or 4) float32 from shared memory; AGAIN: not to be merged with an earlier read of the same place."""
    if COUNT == 4:
        return tl.inline_asm_elementwise(
            _asm_of_read(4, "f32", AGAIN), "=f,=f,=f,=f,r", [address],
            (tl.float32, tl.float32, tl.float32, tl.float32), is_pure=False, pack=1,
        )  # fmt: skip
    elif COUNT == 2:
        return tl.inline_asm_elementwise(
            _asm_of_read(2, "f32", AGAIN), "=f,=f,r", [address], (tl.float32, tl.float32), is_pure=False, pack=1
        )
    else:
        return (tl.inline_asm_elementwise(
            _asm_of_read(1, "f32", AGAIN), "=f,r", [address], tl.float32, is_pure=False, pack=1),)  # fmt: skip


@triton.jit
def _halves(word, DTYPE: tl.constexpr):
    """The two 16-bit numbers of a word in float32."""
    if DTYPE == tl.bfloat16:
        low = (word << 16).to(tl.float32, bitcast=True)
        high = (word & -65536).to(tl.float32, bitcast=True)
    else:
        low = (word & 65535).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
        high = (word >> 16).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
    return low, high


@triton.jit
def _get_numbers(address, COUNT: tl.constexpr, DTYPE: tl.constexpr):
    """COUNT (1, 2 or 4) neighbouring numbers from shared memory, in float32. Never merged with an earlier read."""
    if DTYPE == tl.float32:
        return get(address, COUNT, True)
    elif COUNT == 4:
        first, second = tl.inline_asm_elementwise(
            _asm_of_read(2, "u32", True), "=r,=r,r", [address], (tl.int32, tl.int32), is_pure=False, pack=1
        )
        return _halves(first, DTYPE) + _halves(second, DTYPE)
    elif COUNT == 2:
        word = tl.inline_asm_elementwise(
            _asm_of_read(1, "u32", True), "=r,r", [address], tl.int32, is_pure=False, pack=1
        )
        return _halves(word, DTYPE)
    else:
        word = tl.inline_asm_elementwise(
            _asm_of_read(1, "u16", True), "=r,r", [address], tl.int32, is_pure=False, pack=1
        )
        low, _ = _halves(word, DTYPE)
        return (low,)


@triton.jit
def load_float(pointer, mask):
    """A float32 from memory that this kernel does not write, 0 where the mask is false.

    As a line of PTX since a pass of Triton's, which joins neighbouring accesses and has nothing to join here, walks
    through the whole kernel for each load and store: 40 ms of compilation each.
    """
    if INTERPRETED:
        return tl.load(pointer, mask=mask, other=0.0)
    else:
        return tl.inline_asm_elementwise(
            "{ .reg .pred p; setp.ne.b32 p, $2, 0; mov.f32 $0, 0f00000000; @p ld.global.f32 $0, [$1]; }", "=&f,l,r",
            [pointer.to(tl.int64), mask.to(tl.int32)], tl.float32, is_pure=False, pack=1,
        )  # fmt: skip


@triton.jit
def load_floats(pointer):
    """Four neighbouring float32 from memory; the pointer is a multiple of 16 bytes."""
    values = ()
    if INTERPRETED:
        for i in tl.static_range(4):
            values = values + (tl.load(pointer + i),)
    else:
        values = tl.inline_asm_elementwise(
            "ld.global.v4.f32 {$0, $1, $2, $3}, [$4];", "=f,=f,=f,=f,l", [pointer.to(tl.int64)],
            (tl.float32, tl.float32, tl.float32, tl.float32), is_pure=False, pack=1,
        )  # fmt: skip
    return values


@triton.jit
def store_float(pointer, value, mask):
    """Write a float32 to memory, or a word of 32 bits, where the mask is true; as a line of PTX as ``load_float``."""
    if INTERPRETED:
        tl.store(pointer, value, mask=mask)
    else:
        tl.inline_asm_elementwise(
            "{ .reg .pred p; setp.ne.b32 p, $2, 0; @p st.global.b32 [$1], $3; } mov.u32 $0, 0;", "=r,l,r,r",
            [pointer.to(tl.int64), mask.to(tl.int32), value], tl.int32, is_pure=False, pack=1,
        )  # fmt: skip


@triton.jit
def store_floats(pointer, values, FIRST: tl.constexpr, mask):
    """Write 4 neighbouring float32 to memory at once, if the mask says so; the pointer is a multiple of 16 bytes."""
    tl.inline_asm_elementwise(
        "{ .reg .pred p; setp.ne.b32 p, $2, 0; @p st.global.v4.f32 [$1], {$3, $4, $5, $6}; } mov.u32 $0, 0;",
        "=r,l,r,f,f,f,f",
        [pointer.to(tl.int64), mask.to(tl.int32), values[FIRST], values[FIRST + 1], values[FIRST + 2],
         values[FIRST + 3]], tl.int32, is_pure=False, pack=1,
    )  # fmt: skip


@triton.jit
def add_floats(pointer, values):
    """Atomically add 4 neighbouring float32 to memory at once."""
    tl.inline_asm_elementwise(
        "red.relaxed.gpu.global.add.v4.f32 [$1], {$2, $3, $4, $5}; mov.u32 $0, 0;", "=r,l,f,f,f,f",
        [pointer.to(tl.int64), values[0], values[1], values[2], values[3]], tl.int32, is_pure=False, pack=1,
    )  # fmt: skip


@triton.jit
def _packed(low, high, DTYPE: tl.constexpr):
    """Two float32 as a word of 16-bit numbers, rounded to nearest."""
    if DTYPE == tl.bfloat16:
        return tl.inline_asm_elementwise(
            "cvt.rn.bf16x2.f32 $0, $2, $1;", "=r,f,f", [low, high], tl.int32, is_pure=True, pack=1
        )
    else:
        return tl.inline_asm_elementwise(
            "cvt.rn.f16x2.f32 $0, $2, $1;", "=r,f,f", [low, high], tl.int32, is_pure=True, pack=1
        )


@triton.jit
def store_numbers(pointer, values, mask, channel, D_SIZE, CPT: tl.constexpr, PAIRS: tl.constexpr):
    """Write one number for each of a lane's channels; PAIRS: two 16-bit numbers at a time."""
    dtype: tl.constexpr = pointer.dtype.element_ty
    if PAIRS and CPT > 1 and dtype != tl.float32:
        words = pointer.to(tl.pointer_type(tl.int32))
        for i in tl.static_range(CPT // 2):
            word = _packed(values[2 * i], values[2 * i + 1], dtype)
            store_float(words + i, word, mask & (channel < D_SIZE))
    else:
        for c in tl.static_range(CPT):
            tl.store(pointer + c, values[c].to(dtype), mask=mask & (channel + c < D_SIZE))


@triton.jit
def load_numbers(pointers, strides, t, end, channel, D_SIZE, K: tl.constexpr, CPT: tl.constexpr):
    """K CPT numbers in float32: one position of each of a lane's channels, of K tensors; zeros outside."""
    values = ()
    for k in tl.static_range(K):
        pointer = pointers[k] + t.to(tl.int64) * strides[k] + channel
        for c in tl.static_range(CPT):
            inside = (t < end) & (channel + c < D_SIZE)
            values = values + (tl.load(pointer + c, mask=inside, other=0.0).to(tl.float32),)
    return values


@triton.jit
def copy_plan(
    pointers, strides, rows, first, start, end, channel, D_SIZE,
    K: tl.constexpr, S: tl.constexpr, M: tl.constexpr, CPT: tl.constexpr, ROW: tl.constexpr, BACK: tl.constexpr,
):  # fmt: skip
    """What a lane copies of each group of positions: tuples over the rounds of copies by all lanes.

    First K tensors, then the rows of BC, 8 S M of each row's ROW numbers. Returns addresses for the group of position
    ``first``, the distance to the next group in bytes (BACK: to the one before), and the bound that a group's position
    must be below. ``pointers`` and ``rows`` point to position 0, ``channel`` is the warp's first.
    """
    ITEM: tl.constexpr = pointers[0].dtype.element_ty.primitive_bitwidth // 8
    G: tl.constexpr = S if S < 4 else 4
    SIGN: tl.constexpr = -1 if BACK else 1
    BYTES: tl.constexpr = part_bytes(S, CPT, ITEM)
    PARTS: tl.constexpr = row_bytes(S, CPT, ITEM) // BYTES
    addresses, steps, bounds = (), (), ()
    lane = tl.arange(0, LANES) % 32
    for r in tl.static_range(input_rounds(K, S, CPT, ITEM)):
        i = r * 32 + lane
        position = i // PARTS % G
        address = tl.zeros([LANES], tl.int64)
        step = tl.zeros([LANES], tl.int64)
        for k in tl.static_range(K):
            mine = i // (PARTS * G) == k
            row = (first + position).to(tl.int64) * strides[k]
            address = tl.where(mine, pointers[k].to(tl.int64) + row * ITEM, address)
            step = tl.where(mine, tl.cast(strides[k], tl.int64) * (SIGN * G * ITEM), step)
        here = channel + i % PARTS * (BYTES // ITEM)
        used = (i < K * G * PARTS) & (here < D_SIZE)
        addresses = addresses + (address + here.to(tl.int64) * ITEM,)
        steps = steps + (step,)
        bounds = bounds + (tl.where(used, end - position, start),)
    for r in tl.static_range(bc_rounds(S, M)):
        i = r * 32 + lane
        within = i // (2 * S * M) * (4 * ROW) + i % (2 * S * M) * 16
        addresses = addresses + (rows.to(tl.int64) + first.to(tl.int64) * (4 * ROW) + within,)
        steps = steps + (SIGN * G * 4 * ROW,)
        bounds = bounds + (tl.where(i < G * 2 * S * M, end, start),)
    return addresses, steps, bounds


@triton.jit
def send(
    slots, n, addresses, steps, bounds, states, t0, start,
    K: tl.constexpr, STATES: tl.constexpr, S: tl.constexpr, M: tl.constexpr, CPT: tl.constexpr, ITEM: tl.constexpr,
    STAGES: tl.constexpr, BACK: tl.constexpr,
):  # fmt: skip
    """Start to copy group n, that of position t0, as one group of copies; returns the addresses of the next.

    ``states`` is the address of the program's scratch memory for the group, of which STATES tiles are copied.
    """
    BYTES: tl.constexpr = part_bytes(S, CPT, ITEM)
    INPUTS: tl.constexpr = input_rounds(K, S, CPT, ITEM)
    lane = tl.arange(0, LANES)
    slot = slots + (n & (STAGES - 1)) * slot_bytes(K, STATES, S, M, CPT, ITEM)
    place = slot + input_bytes(K, S, CPT, ITEM) + lane % 32 * 16
    moved = ()
    for r in tl.static_range(INPUTS + bc_rounds(S, M)):
        within = t0 < bounds[r]
        if BACK:
            within = within & (t0 >= start)
        if r < INPUTS:
            to = slot + lane % 32 * BYTES + r * 32 * BYTES
            _copy(to, addresses[r], tl.where(within, BYTES, 0), BYTES, "cg" if BYTES == 16 else "ca")
        else:
            _copy(place + (r - INPUTS) * 512, addresses[r], tl.where(within, 16, 0), 16, "ca")
        moved = moved + (addresses[r] + steps[r],)
    for i in tl.static_range(STATES):
        size = tl.where((t0 >= start) & (lane >= 0), 16, 0)
        _copy(place + (bc_rounds(S, M) + i) * 512, states + lane * 16 + i * (16 * LANES), size, 16, "cg")
    _close_copies()
    return moved


@triton.jit
def receive(slot, K: tl.constexpr, S: tl.constexpr, CPT: tl.constexpr, DTYPE: tl.constexpr):
    """K CPT numbers in float32 from a slot: one position of each of a lane's channels, of K tensors."""
    ITEM: tl.constexpr = DTYPE.primitive_bitwidth // 8
    G: tl.constexpr = S if S < 4 else 4
    lane = tl.arange(0, LANES) % 32
    address = slot + lane % G * row_bytes(S, CPT, ITEM) + lane // S * (CPT * ITEM)
    values = ()
    for k in tl.static_range(K):
        values = values + _get_numbers(address + k * (G * row_bytes(S, CPT, ITEM)), CPT, DTYPE)
    return values


@triton.jit
def broadcast_from_lane(values, j: tl.constexpr, V: tl.constexpr, G: tl.constexpr):
    """V values of the lane of position j, for every lane of the same G."""
    received = ()
    for i in tl.static_range(V):
        received = received + (from_lane(values[i], j, G),)
    return received


@triton.jit
def _sum_over_lanes(v, i: tl.constexpr, V: tl.constexpr, G: tl.constexpr, S: tl.constexpr):
    """At lane % G = j the sum over a channel's S lanes of v[j V + i]."""
    if G == 4:
        total = fold(fold(v[i], v[V + i], 1), fold(v[2 * V + i], v[3 * V + i], 1), 2)
    elif G == 2:
        total = fold(v[i], v[V + i], 1)
    else:
        total = v[i]
    if S > 4:
        total += exchange(total, 4)
    if S > 8:
        total += exchange(total, 8)
    if S > 16:
        total += exchange(total, 16)
    return total


@triton.jit
def sums_over_lanes(parts, V: tl.constexpr, G: tl.constexpr, S: tl.constexpr):
    """V numbers: at lane % G = j the sums over a channel's S lanes of parts[j V + i]."""
    totals = ()
    for i in tl.static_range(V):
        totals = totals + (_sum_over_lanes(parts, i, V, G, S),)
    return totals
