//! Huffman codes of bounded length, and their canonical code words as DEFLATE defines them (RFC 1951, 3.2.2).

use multiversion::multiversion;

use crate::bits::Bits;

/// Computes the lengths of a complete prefix code with at most `max_length` bits for symbols with these frequencies.
///
/// Each symbol has a frequency of at least 1, and there are at least two of them and at most 2^`max_length`.
pub(crate) fn code_lengths(frequencies: &[u32], max_length: u8) -> Vec<u8> {
    let mut by_frequency: Vec<usize> = (0..frequencies.len()).collect();
    by_frequency.sort_unstable_by_key(|symbol| frequencies[*symbol]);
    let weights: Vec<u64> = by_frequency.iter().map(|symbol| u64::from(frequencies[*symbol])).collect();
    let counts = limit_lengths(&unlimited_depths(&weights), max_length);
    let mut lengths = vec![0; frequencies.len()];
    // The rarest symbols get the longest codes.
    let mut symbols = by_frequency.into_iter();
    for length in (1..=max_length).rev() {
        for symbol in symbols.by_ref().take(counts[usize::from(length)]) {
            lengths[symbol] = length;
        }
    }
    lengths
}

/// The depth of each leaf in the Huffman tree of these weights, which ascend.
fn unlimited_depths(weights: &[u64]) -> Vec<u8> {
    let leaves = weights.len();
    let mut nodes = weights.to_vec();
    let mut parents = vec![0; 2 * leaves - 1];
    // Leaves and inner nodes both ascend in weight, so the lightest node is the next of one of them.
    let (mut leaf, mut inner) = (0, leaves);
    while nodes.len() < 2 * leaves - 1 {
        let parent = nodes.len();
        let mut weight = 0;
        for _ in 0..2 {
            let take_leaf = leaf < leaves && (inner >= parent || nodes[leaf] <= nodes[inner]);
            let next = if take_leaf { &mut leaf } else { &mut inner };
            parents[*next] = parent;
            weight += nodes[*next];
            *next += 1;
        }
        nodes.push(weight);
    }
    let mut depths = vec![0_u8; 2 * leaves - 1];
    for node in (0..2 * leaves - 2).rev() {
        depths[node] = depths[parents[node]].saturating_add(1);
    }
    depths.truncate(leaves);
    depths
}

/// Shortens the lengths to the maximum, and makes the code complete again. Returns the number of codes of each length.
fn limit_lengths(depths: &[u8], max_length: u8) -> Vec<usize> {
    let max = usize::from(max_length);
    let mut counts = vec![0; max + 1];
    for depth in depths {
        counts[usize::from(*depth).min(max)] += 1;
    }
    // Kraft's sum, in units of the longest code: a code of a length occupies 2^(max - length) of 2^max.
    let space = |length: usize| 1_usize << (max - length);
    let mut used: usize = (1..=max).map(|length| counts[length] * space(length)).sum();
    while used > space(0) {
        // Lengthening a code by one bit frees half of its space; the longest that can be lengthened costs least.
        let length = (1..max).rev().find(|length| counts[*length] > 0).expect("there are at most 2^max symbols");
        counts[length] -= 1;
        counts[length + 1] += 1;
        used -= space(length + 1);
    }
    while used < space(0) {
        let fits = |length: &usize| counts[*length] > 0 && space(*length) <= space(0) - used;
        let length = (2..=max).rev().find(fits).expect("a code of the maximum length fits");
        counts[length] -= 1;
        counts[length - 1] += 1;
        used += space(length);
    }
    counts
}

/// The canonical code words of these lengths, with their bits in the order in which they are written. A length of 0 is
/// an unused symbol. `None` unless the code is complete: then no code word begins another one.
pub(crate) fn code_words(lengths: &[u8]) -> Option<Vec<Bits>> {
    let mut counts = [0_u32; 16];
    for length in lengths.iter().filter(|length| **length > 0) {
        *counts.get_mut(usize::from(*length))? += 1;
    }
    let mut next = [0_u32; 16];
    let mut code = 0;
    for length in 1..16 {
        code = (code + counts[length - 1]) << 1;
        next[length] = code;
    }
    if next[15] + counts[15] != 1 << 15 {
        return None;
    }
    let word = |length: &u8| {
        if *length == 0 {
            return Bits::default();
        }
        let next = &mut next[usize::from(*length)];
        let bits = next.reverse_bits() >> (32 - u32::from(*length));
        *next += 1;
        Bits::new(bits.into(), (*length).into())
    };
    Some(lengths.iter().map(word).collect())
}

/// The code words of all pairs of bytes: a pair takes one look-up instead of two.
///
/// The entry of a pair is at the index whose lower byte is the first of the pair. Its lower 8 bits hold the number of
/// bits, as a shift by this number needs it, and the bits follow.
pub(crate) struct PairTable(Vec<u32>);

const COUNT_BITS: u32 = 8;

impl PairTable {
    /// A table that is filled later.
    pub(crate) fn new() -> Self {
        Self(vec![0; 1 << 16])
    }

    /// Fills the table with the code words of the 256 literals, which have at most 12 bits each.
    pub(crate) fn fill(&mut self, literals: &[Bits]) {
        let value = |bits: &Bits| u32::try_from(bits.value).expect("a code word has at most 12 bits");
        let firsts: Vec<u32> = literals.iter().map(value).collect();
        let first_counts: Vec<u32> = literals.iter().map(|bits| bits.count).collect();
        for (second, entries) in literals.iter().zip(self.0.chunks_exact_mut(literals.len())) {
            fill_entries(entries, &firsts, &first_counts, (value(second), second.count));
        }
    }

    /// Looks up the code words of eight bytes: of the first four and of the last four, at most 48 bits each.
    #[inline]
    pub(crate) fn words(&self) -> impl Fn([u8; 8]) -> [Bits; 2] + '_ {
        // An array, so that a pair of bytes is always within its bounds.
        let entries: &[u32; 1 << 16] = self.0.first_chunk().expect("the table has 65,536 entries");
        let pair = move |pair: u64| {
            let entry = entries[(pair & 0xFFFF) as usize];
            Bits::new(u64::from(entry >> COUNT_BITS), entry & ((1 << COUNT_BITS) - 1))
        };
        move |bytes| {
            let bytes = u64::from_le_bytes(bytes);
            [pair(bytes).then(pair(bytes >> 16)), pair(bytes >> 32).then(pair(bytes >> 48))]
        }
    }
}

/// Fills the entries of all pairs with the same second byte. The compiler vectorises the loop.
#[multiversion(targets("x86_64+avx2+bmi1+bmi2+lzcnt+popcnt"))]
fn fill_entries(entries: &mut [u32], firsts: &[u32], first_counts: &[u32], (second, second_count): (u32, u32)) {
    for ((entry, first), first_count) in entries.iter_mut().zip(firsts).zip(first_counts) {
        *entry = (first | second << first_count) << COUNT_BITS | (first_count + second_count);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn codes_are_complete_and_bounded(frequencies in proptest::collection::vec(1_u32..5_000_000, 2..286)) {
            let lengths = code_lengths(&frequencies, 12);
            prop_assert!(lengths.iter().all(|length| (1..=12).contains(length)));
            prop_assert!(code_words(&lengths).is_some());
            for (one, other) in frequencies.iter().zip(&lengths).zip(frequencies.iter().zip(&lengths).skip(1)) {
                prop_assert!(one.0 <= other.0 || one.1 <= other.1, "a more frequent symbol has a longer code");
            }
        }
    }

    #[test]
    fn optimal_code_is_kept_where_it_is_short_enough() {
        assert_eq!(code_lengths(&[5, 9, 12, 13, 16, 45], 12), [4, 4, 3, 3, 3, 1]);
    }

    /// The example of RFC 1951, 3.2.2.
    #[test]
    fn canonical_code_words_follow_the_specification() {
        let words = code_words(&[3, 3, 3, 3, 3, 2, 4, 4]).expect("a complete code");
        let text = |word: Bits| (0..word.count).map(move |bit| if word.value >> bit & 1 == 1 { '1' } else { '0' });
        let words: Vec<String> = words.into_iter().map(|word| text(word).collect()).collect();
        assert_eq!(words, ["010", "011", "100", "101", "110", "00", "1110", "1111"]);
        assert_eq!(code_words(&[1, 2]), None, "an incomplete code");
        assert_eq!(code_words(&[1, 1, 1]), None, "an over-subscribed code");
    }
}
