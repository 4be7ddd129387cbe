//! Sequences of bits, and a stream of them. The lowest bit of each byte comes first, as DEFLATE has it.

/// The most bits that one value holds: a value that begins within a byte then fits into 64 bits.
const MAX_BITS: u32 = 56;
/// The least room, in bytes, that a writer makes at once.
const MIN_ROOM: usize = 4_096;

/// Up to 56 bits, of which the lowest comes first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Bits {
    /// Higher bits are 0.
    pub(crate) value: u64,
    pub(crate) count: u32,
}

impl Bits {
    pub(crate) const fn new(value: u64, count: u32) -> Self {
        Self { value, count }
    }

    /// These bits and then the others. Both together have at most 56 bits.
    #[inline]
    pub(crate) fn then(self, next: Self) -> Self {
        Self { value: self.value | next.value << self.count, count: self.count + next.count }
    }

    /// Whether these bits and the others fit into one value.
    #[inline]
    pub(crate) fn fits_with(self, next: Self) -> bool {
        self.count + next.count <= MAX_BITS
    }

    /// Removes the first `count` bits, at most 56.
    #[inline]
    fn remove_first(&mut self, count: u32) {
        self.value >>= count;
        self.count -= count;
    }
}

/// Appends bits to a buffer of bytes.
pub(crate) struct BitWriter {
    /// What is written, and room for more.
    buffer: Vec<u8>,
    /// Length of what is written.
    length: usize,
    /// Bits that are not in the buffer yet: fewer than 8 between two calls.
    pending: Bits,
}

impl BitWriter {
    pub(crate) fn new(buffer: Vec<u8>) -> Self {
        Self { length: buffer.len(), buffer, pending: Bits::default() }
    }

    #[inline]
    pub(crate) fn write(&mut self, bits: Bits) {
        self.pending = self.pending.then(bits);
        let complete = self.pending.count & !7;
        self.make_room(8);
        self.buffer[self.length..self.length + 8].copy_from_slice(&self.pending.value.to_le_bytes());
        self.length += complete as usize / 8;
        self.pending.remove_first(complete);
    }

    /// Makes room for this many bytes after what is written.
    #[inline]
    fn make_room(&mut self, bytes: usize) {
        if self.buffer.len() < self.length + bytes {
            self.buffer.resize(self.length + bytes.max(MIN_ROOM), 0);
        }
    }

    /// Writes pairs of values. Faster than one call for each value.
    ///
    /// `max_bytes` is an upper bound of what is written.
    pub(crate) fn write_pairs(&mut self, pairs: impl Iterator<Item = [Bits; 2]>, max_bytes: usize) {
        // A store writes eight bytes, of which only the complete ones are kept.
        self.make_room(max_bytes + 8);
        let out = &mut self.buffer[self.length..];
        let (mut pending, mut position) = (self.pending, 0);
        let mut store = |bits: Bits| {
            pending = pending.then(bits);
            out[position..position + 8].copy_from_slice(&pending.value.to_le_bytes());
            let complete = pending.count & !7;
            position += complete as usize / 8;
            pending.remove_first(complete);
        };
        for [first, second] in pairs {
            if first.fits_with(second) {
                store(first.then(second));
            } else {
                store(first);
                store(second);
            }
        }
        self.length += position;
        self.pending = pending;
    }

    /// Fills the last byte with zeros and returns the buffer.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        if self.pending.count > 0 {
            self.write(Bits::new(0, 8 - self.pending.count));
        }
        self.buffer.truncate(self.length);
        self.buffer
    }
}

/// Reads a stream of bits.
pub(crate) struct BitReader<'a> {
    stream: &'a [u8],
    /// In bits.
    position: usize,
}

impl<'a> BitReader<'a> {
    pub(crate) fn new(stream: &'a [u8]) -> Self {
        Self { stream, position: 0 }
    }

    /// The next bits, at least 56 of them; zeros after the end of the stream.
    #[inline]
    fn peek(&self) -> u64 {
        let start = self.position / 8;
        let bytes = match self.stream.get(start..start + 8) {
            Some(bytes) => bytes.try_into().expect("eight bytes"),
            None => self.last_bytes(start),
        };
        u64::from_le_bytes(bytes) >> (self.position % 8)
    }

    /// Fewer than eight bytes of the stream, and zeros.
    #[cold]
    fn last_bytes(&self, start: usize) -> [u8; 8] {
        let rest = self.stream.get(start..).unwrap_or_default();
        std::array::from_fn(|position| rest.get(position).copied().unwrap_or_default())
    }

    /// Skips these bits if they are next.
    #[inline]
    pub(crate) fn skip(&mut self, bits: Bits) -> bool {
        let differs = (self.peek() ^ bits.value) & ((1 << bits.count) - 1) != 0;
        let end = self.position + bits.count as usize;
        if differs || end > self.stream.len() * 8 {
            return false;
        }
        self.position = end;
        true
    }

    /// Reads `count` bits, at most 56; `None` if the stream ends before.
    pub(crate) fn read(&mut self, count: u32) -> Option<u64> {
        let bits = Bits::new(self.peek() & ((1 << count) - 1), count);
        self.skip(bits).then_some(bits.value)
    }

    /// Whether only zeros follow, fewer than eight of them.
    pub(crate) fn is_at_end(&self) -> bool {
        self.stream.len() * 8 - self.position < 8 && self.peek() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_follow_each_other_whatever_the_call() {
        let values: Vec<Bits> =
            (1..=48).map(|count| Bits::new((1 << count) - 1 - u64::from(count % 2), count)).collect();
        let mut one_by_one = BitWriter::new(vec![7]);
        for bits in &values {
            one_by_one.write(*bits);
        }
        let mut in_pairs = BitWriter::new(vec![7]);
        in_pairs.write_pairs(values.chunks_exact(2).map(|pair| [pair[0], pair[1]]), 48 * 49 / 16 + 1);
        let file = one_by_one.finish();
        assert_eq!(file.len(), 1 + 48 * 49 / 16);
        assert_eq!(file, in_pairs.finish());
        let mut reader = BitReader::new(&file[1..]);
        for bits in values {
            assert!(!reader.is_at_end() && !reader.skip(Bits::new(bits.value ^ 1, bits.count)));
            assert_eq!(reader.read(bits.count), Some(bits.value));
        }
        assert!(reader.is_at_end());
        assert_eq!(reader.read(1), None);
    }

    #[test]
    fn value_of_56_bits_fits_after_seven_pending_ones() {
        let mut writer = BitWriter::new(Vec::new());
        for bits in [Bits::new(0b101_0101, 7), Bits::new((1 << 56) - 1, 56), Bits::new(1, 1)] {
            writer.write(bits);
        }
        assert_eq!(writer.finish(), [0b1101_0101, 255, 255, 255, 255, 255, 255, 255]);
    }
}
