//! MD5 of several messages at once, side by side in SIMD lanes.
//!
//! Place: `aggregate` ends every KPL record with the MD5 of its bytes, and the hash of a partition key is its MD5:
//! one by one they would be the largest cost on the way of an event. One MD5 is a chain of 64 dependent steps a
//! block, in which a processor that could do several operations a cycle mostly waits. The records of a request
//! and the keys of a batch are independent: sixteen in lockstep take little longer than one.
//!
//! Which instructions there are is found out once, when the program runs (`fearless_simd`): AVX-512, AVX2, SSE2,
//! NEON. Pure. Checked against the `md-5` crate by property tests; RFC 1321 is the source of the constants.

use fearless_simd::{Level, Simd, SimdBase, SimdInt, dispatch, u32x4, u32x8, u32x16};

/// The most messages side by side.
const WIDE: usize = 16;

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

/// One of the four rounds: sixteen steps `b + rotate(a + F(b, c, d) + word + sine)`.
#[inline(always)]
fn round<const ROUND: usize, S: Simd, V: SimdInt<S, Element = u32>>(mut state: [V; 4], words: &[V; 16]) -> [V; 4] {
    let mut i = 0;
    while i < 16 {
        let at = match ROUND {
            0 => i,
            1 => (5 * i + 1) % 16,
            2 => (3 * i + 5) % 16,
            _ => (7 * i) % 16,
        };
        let [a, b, c, d] = state;
        let mixed = match ROUND {
            0 => d ^ (b & (c ^ d)),
            1 => c ^ (d & (b ^ c)),
            2 => b ^ c ^ d,
            _ => c ^ (b | !d),
        };
        // What does not wait for the step before comes first.
        let sum = a + (words[at] + SINES[16 * ROUND + i]) + mixed;
        let rotation = ROTATIONS[ROUND][i % 4];
        state = [d, b + ((sum << rotation) | (sum >> (32 - rotation))), b, c];
        i += 1;
    }
    state
}

/// Word `i` of every lane's block, for each `i`: rows turned into columns.
#[inline(always)]
fn columns<S: Simd, V: SimdInt<S, Element = u32>>(simd: S, blocks: &[&[u8; BLOCK_BYTES]; WIDE]) -> [V; 16] {
    let mut words = [V::splat(simd, 0); 16];
    let mut part = 0;
    while part < 16 / V::LEN {
        let mut rows = [V::splat(simd, 0); 16];
        let mut lane = 0;
        while lane < V::LEN {
            let bytes = &blocks[lane][4 * V::LEN * part..4 * V::LEN * (part + 1)];
            rows[lane] = V::from_bytes(V::ByteVector::from_slice(simd, bytes));
            lane += 1;
        }
        // Shuffling the two halves like cards, as often as it takes for each to come to its own.
        let mut shuffled = 1;
        while shuffled < V::LEN {
            let from = rows;
            let mut i = 0;
            while i < V::LEN / 2 {
                (rows[2 * i], rows[2 * i + 1]) = from[i].interleave(from[i + V::LEN / 2]);
                i += 1;
            }
            shuffled *= 2;
        }
        let mut i = 0;
        while i < V::LEN {
            words[part * V::LEN + i] = rows[i];
            i += 1;
        }
        part += 1;
    }
    words
}

/// A message on its way: whole blocks of its own, then the padded end.
struct Message<'m> {
    which: usize,
    body: &'m [[u8; BLOCK_BYTES]],
    end: [[u8; BLOCK_BYTES]; 2],
    /// Blocks of the end that are still to come, the last ones of `end`.
    end_blocks: usize,
    state: [u32; 4],
}

impl<'m> Message<'m> {
    fn new(which: usize, message: &'m [u8]) -> Self {
        let (body, rest) = message.as_chunks::<BLOCK_BYTES>();
        // Padding: a one, zeros, the length in bits (RFC 1321, 3.1 and 3.2).
        let end_blocks = if rest.len() + 9 <= BLOCK_BYTES { 1 } else { 2 };
        let mut end = [[0; BLOCK_BYTES]; 2];
        let flat = &mut end.as_flattened_mut()[(2 - end_blocks) * BLOCK_BYTES..];
        flat[..rest.len()].copy_from_slice(rest);
        flat[rest.len()] = 0x80;
        let bits = (message.len() as u64).wrapping_mul(8);
        end[1][BLOCK_BYTES - 8..].copy_from_slice(&bits.to_le_bytes());
        Self { which, body, end, end_blocks, state: START }
    }

    /// The blocks that come next and lie together.
    fn blocks(&self) -> &[[u8; BLOCK_BYTES]] {
        if self.body.is_empty() { &self.end[2 - self.end_blocks..] } else { self.body }
    }

    fn advance(&mut self, blocks: usize) {
        if self.body.is_empty() {
            self.end_blocks -= blocks;
        } else {
            self.body = &self.body[blocks..];
        }
    }

    fn is_done(&self) -> bool {
        self.end_blocks == 0
    }

    fn digest(&self) -> [u8; 16] {
        let mut digest = [0; 16];
        for (bytes, word) in digest.chunks_exact_mut(4).zip(self.state) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        digest
    }
}

/// Advances all messages (one at least, as many as `V` has lanes at most) by as many blocks as the one with the fewest.
#[inline(always)]
fn advance<S: Simd, V: SimdInt<S, Element = u32>>(simd: S, messages: &mut [Message<'_>]) {
    let count = messages.iter().map(|message| message.blocks().len()).min().unwrap_or(0);
    // A lane without a message does again what the first one does.
    let message_of = |lane: usize| if lane < messages.len() { lane } else { 0 };
    let inputs: [&[[u8; BLOCK_BYTES]]; WIDE] = std::array::from_fn(|lane| &messages[message_of(lane)].blocks()[..count]);
    let mut state: [V; 4] = std::array::from_fn(|word| {
        V::from_fn(
            simd,
            #[inline(always)]
            |lane| messages[message_of(lane)].state[word],
        )
    });
    for block in 0..count {
        let blocks = inputs.map(
            #[inline(always)]
            |input| &input[block],
        );
        let words = columns::<S, V>(simd, &blocks);
        let mut next = round::<0, S, V>(state, &words);
        next = round::<1, S, V>(next, &words);
        next = round::<2, S, V>(next, &words);
        next = round::<3, S, V>(next, &words);
        let mut word = 0;
        while word < 4 {
            state[word] += next[word];
            word += 1;
        }
    }
    for (lane, message) in messages.iter_mut().enumerate() {
        message.state = std::array::from_fn(|word| state[word].as_slice()[lane]);
        message.advance(count);
    }
}

#[inline(always)]
fn side_by_side<S: Simd>(simd: S, messages: &[&[u8]]) -> Vec<[u8; 16]> {
    // Two registers a word, where registers are enough for it: one's steps fill the waits of the other's.
    let wide = if S::u32s::LEN >= 8 { 16 } else { 8 };
    let mut digests = vec![[0; 16]; messages.len()];
    let mut waiting = messages.iter().enumerate().map(|(which, message)| Message::new(which, message));
    let mut lanes: Vec<Message<'_>> = Vec::with_capacity(WIDE);
    loop {
        lanes.extend(waiting.by_ref().take(wide - lanes.len()));
        match lanes.len() {
            0 => return digests,
            1..=4 => advance::<S, u32x4<S>>(simd, &mut lanes),
            5..=8 => advance::<S, u32x8<S>>(simd, &mut lanes),
            _ => advance::<S, u32x16<S>>(simd, &mut lanes),
        }
        lanes.retain(|message| {
            if message.is_done() {
                digests[message.which] = message.digest();
            }
            !message.is_done()
        });
    }
}

/// The MD5 of each message.
#[must_use]
pub fn digests(messages: &[&[u8]]) -> Vec<[u8; 16]> {
    dispatch!(Level::new(), simd => side_by_side(simd, messages))
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
