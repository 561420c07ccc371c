//! MD5 of several messages at once, side by side in SIMD lanes.
//!
//! Place: `aggregate` ends every KPL record with the MD5 of its bytes, which is the largest single cost on the way
//! of an event. One MD5 is a chain of 64 dependent steps a block, so a processor that could do several operations a
//! cycle mostly waits. The records of one request are independent: four of them in lockstep take little longer
//! than one. Plain arithmetic on arrays, which the compiler turns into vector instructions; no intrinsics, no unsafe.
//!
//! Pure. Checked against the `md-5` crate by property tests; RFC 1321 is the source of the constants.
//! When fewer messages are left than fit side by side, they go one by one.

/// Messages side by side: one SSE2 register a state word. Eight were measured slower: the state no longer fits the
/// registers.
const WIDE: usize = 4;

const BLOCK_BYTES: usize = 64;

/// Step constants: `floor(2^32 × |sin(i + 1)|)` (RFC 1321, 3.4).
const SINES: [u32; 64] = [
    0xd76a_a478,
    0xe8c7_b756,
    0x2420_70db,
    0xc1bd_ceee,
    0xf57c_0faf,
    0x4787_c62a,
    0xa830_4613,
    0xfd46_9501,
    0x6980_98d8,
    0x8b44_f7af,
    0xffff_5bb1,
    0x895c_d7be,
    0x6b90_1122,
    0xfd98_7193,
    0xa679_438e,
    0x49b4_0821,
    0xf61e_2562,
    0xc040_b340,
    0x265e_5a51,
    0xe9b6_c7aa,
    0xd62f_105d,
    0x0244_1453,
    0xd8a1_e681,
    0xe7d3_fbc8,
    0x21e1_cde6,
    0xc337_07d6,
    0xf4d5_0d87,
    0x455a_14ed,
    0xa9e3_e905,
    0xfcef_a3f8,
    0x676f_02d9,
    0x8d2a_4c8a,
    0xfffa_3942,
    0x8771_f681,
    0x6d9d_6122,
    0xfde5_380c,
    0xa4be_ea44,
    0x4bde_cfa9,
    0xf6bb_4b60,
    0xbebf_bc70,
    0x289b_7ec6,
    0xeaa1_27fa,
    0xd4ef_3085,
    0x0488_1d05,
    0xd9d4_d039,
    0xe6db_99e5,
    0x1fa2_7cf8,
    0xc4ac_5665,
    0xf429_2244,
    0x432a_ff97,
    0xab94_23a7,
    0xfc93_a039,
    0x655b_59c3,
    0x8f0c_cc92,
    0xffef_f47d,
    0x8584_5dd1,
    0x6fa8_7e4f,
    0xfe2c_e6e0,
    0xa301_4314,
    0x4e08_11a1,
    0xf753_7e82,
    0xbd3a_f235,
    0x2ad7_d2bb,
    0xeb86_d391,
];

/// Rotations of the four rounds (RFC 1321, 3.4).
const ROTATIONS: [[u32; 4]; 4] = [[7, 12, 17, 22], [5, 9, 14, 20], [4, 11, 16, 23], [6, 10, 15, 21]];

const START: [u32; 4] = [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476];

type Lanes<const N: usize> = [u32; N];

#[inline(always)]
fn each<const N: usize>(f: impl Fn(usize) -> u32) -> Lanes<N> {
    std::array::from_fn(f)
}

/// One step: `b + rotate(a + F(b, c, d) + m + sine)`.
#[inline(always)]
fn step<const ROUND: usize, const N: usize>(
    [a, b, c, d]: [Lanes<N>; 4],
    word: &Lanes<N>,
    sine: u32,
    rotation: u32,
) -> [Lanes<N>; 4] {
    let mixed = each::<N>(|l| match ROUND {
        0 => d[l] ^ (b[l] & (c[l] ^ d[l])),
        1 => c[l] ^ (d[l] & (b[l] ^ c[l])),
        2 => b[l] ^ c[l] ^ d[l],
        _ => c[l] ^ (b[l] | !d[l]),
    });
    let sum = each::<N>(|l| a[l].wrapping_add(mixed[l]).wrapping_add(word[l]).wrapping_add(sine));
    let new = each::<N>(|l| b[l].wrapping_add(sum[l].rotate_left(rotation)));
    [d, new, b, c]
}

#[inline(always)]
fn round<const ROUND: usize, const N: usize>(mut state: [Lanes<N>; 4], words: &[Lanes<N>; 16]) -> [Lanes<N>; 4] {
    let mut i = 0;
    while i < 16 {
        let at = match ROUND {
            0 => i,
            1 => (5 * i + 1) % 16,
            2 => (3 * i + 5) % 16,
            _ => (7 * i) % 16,
        };
        state = step::<ROUND, N>(state, &words[at], SINES[16 * ROUND + i], ROTATIONS[ROUND][i % 4]);
        i += 1;
    }
    state
}

/// Advances `N` states by `blocks` blocks, one message each.
fn compress<const N: usize>(state: &mut [Lanes<N>; 4], messages: &[&[u8]; N], blocks: usize) {
    for block in 0..blocks {
        let rows: [[u32; 16]; N] = std::array::from_fn(|lane| {
            let bytes = &messages[lane][block * BLOCK_BYTES..(block + 1) * BLOCK_BYTES];
            std::array::from_fn(|word| {
                u32::from_le_bytes([bytes[4 * word], bytes[4 * word + 1], bytes[4 * word + 2], bytes[4 * word + 3]])
            })
        });
        let words: [Lanes<N>; 16] = std::array::from_fn(|word| each::<N>(|lane| rows[lane][word]));
        let mut next = round::<0, N>(*state, &words);
        next = round::<1, N>(next, &words);
        next = round::<2, N>(next, &words);
        next = round::<3, N>(next, &words);
        for (held, new) in state.iter_mut().zip(next) {
            *held = each::<N>(|l| held[l].wrapping_add(new[l]));
        }
    }
}

/// A message on its way: whole blocks of its own, then the padded end.
struct Part<'a> {
    which: usize,
    body: &'a [u8],
    end: Option<([u8; 2 * BLOCK_BYTES], usize)>,
    state: [u32; 4],
}

impl<'a> Part<'a> {
    fn new(which: usize, message: &'a [u8]) -> Self {
        let whole = message.len() - message.len() % BLOCK_BYTES;
        let (body, rest) = message.split_at(whole);
        let mut end = [0; 2 * BLOCK_BYTES];
        end[..rest.len()].copy_from_slice(rest);
        end[rest.len()] = 0x80;
        let end_len = if rest.len() + 9 <= BLOCK_BYTES { BLOCK_BYTES } else { 2 * BLOCK_BYTES };
        end[end_len - 8..end_len].copy_from_slice(&(message.len() as u64).wrapping_mul(8).to_le_bytes());
        Self { which, body, end: Some((end, end_len)), state: START }
    }

    /// The padded end, alone: a block or two.
    fn finish(&mut self) -> [u8; 16] {
        if let Some((end, len)) = self.end.take() {
            let mut state = self.state.map(|word| [word]);
            compress::<1>(&mut state, &[&end[..len]], len / BLOCK_BYTES);
            self.state = state.map(|[word]| word);
        }
        let mut out = [0; 16];
        for (four, word) in out.chunks_exact_mut(4).zip(self.state) {
            four.copy_from_slice(&word.to_le_bytes());
        }
        out
    }
}

/// The MD5 of each message.
#[must_use]
pub fn digests(messages: &[&[u8]]) -> Vec<[u8; 16]> {
    let mut out = vec![[0; 16]; messages.len()];
    let mut waiting = messages.iter().enumerate().map(|(which, message)| Part::new(which, message));
    let mut lanes: Vec<Part<'_>> = waiting.by_ref().take(WIDE).collect();
    while let Ok(full) = <&mut [Part<'_>; WIDE]>::try_from(&mut lanes[..]) {
        let blocks = full.iter().map(|part| part.body.len()).min().unwrap_or(0) / BLOCK_BYTES;
        let mut state: [Lanes<WIDE>; 4] = std::array::from_fn(|word| each::<WIDE>(|l| full[l].state[word]));
        compress::<WIDE>(&mut state, &std::array::from_fn(|l| full[l].body), blocks);
        for (l, part) in full.iter_mut().enumerate() {
            part.state = std::array::from_fn(|word| state[word][l]);
            part.body = &part.body[blocks * BLOCK_BYTES..];
        }
        lanes.retain_mut(|part| {
            let done = part.body.is_empty();
            if done {
                out[part.which] = part.finish();
            }
            !done
        });
        lanes.extend(waiting.by_ref().take(WIDE - lanes.len()));
    }
    for mut part in lanes {
        let mut state = part.state.map(|word| [word]);
        compress::<1>(&mut state, &[part.body], part.body.len() / BLOCK_BYTES);
        part.state = state.map(|[word]| word);
        out[part.which] = part.finish();
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use md5::{Digest, Md5};
    use proptest::prelude::*;

    fn one_by_one(messages: &[&[u8]]) -> Vec<[u8; 16]> {
        messages.iter().map(|message| Md5::digest(message).into()).collect()
    }

    proptest! {
        #[test]
        fn side_by_side_is_the_same_as_one_by_one(messages in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..400), 0..30)) {
            let messages: Vec<&[u8]> = messages.iter().map(|message| &message[..]).collect();
            prop_assert_eq!(digests(&messages), one_by_one(&messages));
        }
    }

    #[test]
    fn every_length_around_a_block_is_padded_as_rfc_1321_says() {
        let bytes: Vec<u8> = (0..=255).collect();
        let messages: Vec<&[u8]> = (0..200).map(|len| &bytes[..len]).collect();
        assert_eq!(digests(&messages), one_by_one(&messages));
    }
}
