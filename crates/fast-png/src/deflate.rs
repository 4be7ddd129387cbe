//! The part of DEFLATE (RFC 1951) that the encoder uses: blocks with Huffman codes of their own, whose only matches are
//! runs, that is, repetitions of the byte before.

use crate::bits::Bits;
use crate::huffman::{self, PairTable};

/// The header of a zlib stream: DEFLATE with a window of 32 KiB, fastest level. Source: RFC 1950, 2.2.
pub(crate) const ZLIB_HEADER: [u8; 2] = [0x78, 0x01];
/// The longest code word. Two of them, and the pending bits of a writer, fit into one look-up and one store.
pub(crate) const MAX_CODE_BITS: u8 = 12;
/// The symbol that ends a block.
pub(crate) const END_OF_BLOCK: usize = 256;
/// The symbol of the shortest match.
pub(crate) const FIRST_LENGTH: usize = 257;
/// Symbols of literals, the end of a block, and lengths.
pub(crate) const SYMBOLS: usize = 286;
/// The longest match.
pub(crate) const MAX_RUN: usize = 258;
/// The shortest match.
const MIN_RUN: usize = 3;
/// A run of at least this many zeros is written as matches.
const ZEROS: [u8; 8] = [0; 8];

/// The code that describes the lengths of the other codes has 4 bits for each of the lengths 0 to 15.
pub(crate) const LENGTH_CODE_BITS: u32 = 4;
/// The code word of the only distance, 1.
pub(crate) const DISTANCE: Bits = Bits::new(0, 1);
/// The bits after the first one of each block. Source: RFC 1951, 3.2.7.
pub(crate) const HEADER: [Bits; 4 + 19] = {
    /// The order in which the lengths of the code for code lengths are written.
    const ORDER: [u8; 19] = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];
    let mut header = [Bits::new(0, 3); 4 + 19];
    // A block with codes of its own, for 286 symbols and one distance, and all 19 lengths of the code for code lengths.
    header[0] = Bits::new(2, 2);
    header[1] = Bits::new(SYMBOLS as u64 - 257, 5);
    header[2] = Bits::new(0, 5);
    header[3] = Bits::new(15, 4);
    let mut position = 0;
    while position < ORDER.len() {
        // The symbols from 16 on, which repeat lengths, are not used.
        if ORDER[position] < 16 {
            header[4 + position] = Bits::new(LENGTH_CODE_BITS as u64, 3);
        }
        position += 1;
    }
    header
};

/// The shortest length and the number of extra bits of each length symbol. Source: RFC 1951, 3.2.5.
pub(crate) const LENGTHS: [(usize, u32); SYMBOLS - FIRST_LENGTH] = [
    (3, 0),
    (4, 0),
    (5, 0),
    (6, 0),
    (7, 0),
    (8, 0),
    (9, 0),
    (10, 0),
    (11, 1),
    (13, 1),
    (15, 1),
    (17, 1),
    (19, 2),
    (23, 2),
    (27, 2),
    (31, 2),
    (35, 3),
    (43, 3),
    (51, 3),
    (59, 3),
    (67, 4),
    (83, 4),
    (99, 4),
    (115, 4),
    (131, 5),
    (163, 5),
    (195, 5),
    (227, 5),
    (258, 0),
];

/// What a row consists of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token {
    Literal(u8),
    /// The byte before is repeated this often: 3 to 258 times.
    Run(usize),
}

/// Whether a filtered row has a run that is worth a match.
pub(crate) fn has_runs(row: &[u8]) -> bool {
    // Only at multiples of eight, which is fast; a longer run contains one.
    row.as_chunks().0.contains(&ZEROS)
}

/// Splits a filtered row with runs into tokens.
fn for_each_token(row: &[u8], mut visit: impl FnMut(Token)) {
    let mut rest = row;
    while let [first, after @ ..] = rest {
        visit(Token::Literal(*first));
        let is_run = rest.starts_with(&ZEROS);
        rest = after;
        if is_run {
            let mut zeros = rest.iter().take_while(|byte| **byte == 0).count();
            while zeros >= MIN_RUN {
                let length = zeros.min(MAX_RUN);
                visit(Token::Run(length));
                rest = &rest[length..];
                zeros -= length;
            }
        }
    }
}

/// The symbol of a run's length, and its extra bits.
fn length_symbol(length: usize) -> (usize, Bits) {
    let position = LENGTHS.iter().rposition(|(base, _)| *base <= length).expect("a run has at least 3 bytes");
    let (base, extra_bits) = LENGTHS[position];
    (FIRST_LENGTH + position, Bits::new((length - base) as u64, extra_bits))
}

/// How often each symbol occurs in a sample of a block's rows.
pub(crate) struct Sample {
    /// Four counts for each symbol: successive bytes are often equal, and a processor increments one counter slowly.
    counts: [[u32; SYMBOLS]; 4],
    has_runs: bool,
}

impl Sample {
    pub(crate) fn new() -> Self {
        Self { counts: [[0; SYMBOLS]; 4], has_runs: false }
    }

    /// Adds a filtered row.
    pub(crate) fn add(&mut self, row: &[u8]) {
        if has_runs(row) {
            self.has_runs = true;
            let counts = &mut self.counts[0];
            for_each_token(row, |token| match token {
                Token::Literal(byte) => counts[usize::from(byte)] += 1,
                Token::Run(length) => counts[length_symbol(length).0] += 1,
            });
            return;
        }
        let (bytes, rest) = row.as_chunks::<4>();
        for bytes in bytes {
            for (counts, byte) in self.counts.iter_mut().zip(bytes) {
                counts[usize::from(*byte)] += 1;
            }
        }
        for byte in rest {
            self.counts[0][usize::from(*byte)] += 1;
        }
    }

    fn frequencies(&self) -> [u32; SYMBOLS] {
        std::array::from_fn(|symbol| self.counts.iter().map(|counts| counts[symbol]).sum())
    }

    /// The size of the sample's symbols with an ideal code, in bits, without extra bits.
    pub(crate) fn entropy_bits(&self) -> f64 {
        let frequencies = self.frequencies().map(f64::from);
        let total: f64 = frequencies.iter().sum();
        frequencies.iter().filter(|count| **count > 0.0).map(|count| count * (total / count).log2()).sum()
    }

    /// The code of a block from which the sample was taken.
    pub(crate) fn into_code(self) -> BlockCode {
        // Symbols that the sample lacks may occur in the block.
        let frequencies = self.frequencies().map(|count| count * 8 + 1);
        let used = if self.has_runs { SYMBOLS } else { FIRST_LENGTH };
        let mut lengths = huffman::code_lengths(&frequencies[..used], MAX_CODE_BITS);
        lengths.resize(SYMBOLS, 0);
        let words = huffman::code_words(&lengths).expect("the code is complete");
        BlockCode { lengths, words, has_runs: self.has_runs }
    }
}

/// The code of one block.
pub(crate) struct BlockCode {
    lengths: Vec<u8>,
    words: Vec<Bits>,
    has_runs: bool,
}

impl BlockCode {
    /// The bits that begin a block: its type and the lengths of its codes.
    pub(crate) fn header(&self, is_last: bool) -> impl Iterator<Item = Bits> {
        let lengths = self.lengths.iter().map(|length| code_length(*length));
        [Bits::new(is_last.into(), 1)].into_iter().chain(HEADER).chain(lengths).chain([code_length(DISTANCE.count)])
    }

    /// The code words of the literals.
    pub(crate) fn fill(&self, pairs: &mut PairTable) {
        pairs.fill(&self.words[..END_OF_BLOCK]);
    }

    /// The code word of one symbol.
    pub(crate) fn word(&self, symbol: usize) -> Bits {
        self.words[symbol]
    }

    /// Whether the block may have matches.
    pub(crate) fn has_runs(&self) -> bool {
        self.has_runs
    }

    /// Calls `write` with the bits of each token of a filtered row.
    pub(crate) fn for_each_token(&self, row: &[u8], mut write: impl FnMut(Bits)) {
        for_each_token(row, |token| match token {
            Token::Literal(byte) => write(self.words[usize::from(byte)]),
            Token::Run(length) => {
                let (symbol, extra) = length_symbol(length);
                write(self.words[symbol].then(extra).then(DISTANCE));
            }
        });
    }
}

/// The code word of a code length: the length, with its highest bit first.
fn code_length(length: impl Into<u32>) -> Bits {
    Bits::new(u64::from(length.into().reverse_bits() >> (32 - LENGTH_CODE_BITS)), LENGTH_CODE_BITS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_of_a_row_expand_to_the_row() {
        for zeros in 0..1_100 {
            let row = [&[5, 0, 7][..], &vec![0; zeros], &[9, 0, 0]].concat();
            let mut expanded = Vec::new();
            for_each_token(&row, |token| match token {
                Token::Literal(byte) => expanded.push(byte),
                Token::Run(length) => {
                    assert!((MIN_RUN..=MAX_RUN).contains(&length));
                    let (symbol, extra) = length_symbol(length);
                    let (base, extra_bits) = LENGTHS[symbol - FIRST_LENGTH];
                    assert_eq!(
                        (base + usize::try_from(extra.value).expect("few bits"), extra_bits),
                        (length, extra.count)
                    );
                    let byte = *expanded.last().expect("a run follows a literal");
                    expanded.extend(vec![byte; length]);
                }
            });
            assert_eq!(expanded, row, "{zeros} zeros");
        }
    }
}
