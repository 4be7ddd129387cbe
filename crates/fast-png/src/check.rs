//! Proves that a file decodes to given pixels.

use multiversion::multiversion;
use simd_adler32::Adler32;

use crate::Picture;
use crate::bits::{BitReader, Bits};
use crate::chunk::{self, Chunk, SIGNATURE};
use crate::deflate::{
    DISTANCE, END_OF_BLOCK, FIRST_LENGTH, HEADER, LENGTH_CODE_BITS, LENGTHS, MAX_CODE_BITS, MAX_RUN, SYMBOLS,
    ZLIB_HEADER,
};
use crate::filter::Filter;
use crate::huffman::{self, PairTable};

/// What is wrong with a file. Not every correct PNG file passes: only the format that the encoder writes does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CheckError {
    /// The file does not consist of the expected chunks, or the checksum of a chunk is wrong.
    #[error("the chunk {0} is damaged or missing")]
    Chunk(&'static str),
    /// The compressed stream is damaged.
    #[error("the compressed pixels are damaged: {0}")]
    Stream(&'static str),
    /// The file decodes to other pixels.
    #[error("row {0} decodes to other pixels")]
    Pixels(usize),
}

/// Proves that a file of [`encode`](crate::encode) decodes to these pixels.
///
/// The signature, the structure and checksum of each chunk, the header and the compressed stream are checked. Of texts
/// only the checksum is. For each block, the code in its header must be complete, so that no code word begins another
/// one. Then code words that equal those of the expected bytes can only be decoded to these bytes.
///
/// # Errors
///
/// The first [`CheckError`] found.
pub fn check(file: &[u8], picture: &Picture<'_>) -> Result<(), CheckError> {
    let mut rest = file.strip_prefix(&SIGNATURE).ok_or(CheckError::Chunk("IHDR"))?;
    let mut next = |expected: &'static str| -> Result<Chunk<'_>, CheckError> {
        let (chunk, after) = chunk::split_first(rest).ok_or(CheckError::Chunk(expected))?;
        rest = after;
        Ok(chunk)
    };
    let header = Chunk { kind: *b"IHDR", data: &chunk::header_data(picture.width, picture.height) };
    if next("IHDR")? != header {
        return Err(CheckError::Chunk("IHDR"));
    }
    let pixels = loop {
        let chunk = next("IDAT")?;
        match &chunk.kind {
            b"tEXt" | b"iTXt" => {}
            b"IDAT" => break chunk,
            _ => return Err(CheckError::Chunk("IDAT")),
        }
    };
    check_stream(pixels.data, picture)?;
    let end = next("IEND")?;
    if end != (Chunk { kind: *b"IEND", data: &[] }) || !rest.is_empty() {
        return Err(CheckError::Chunk("IEND"));
    }
    Ok(())
}

/// Checks a zlib stream (RFC 1950).
fn check_stream(data: &[u8], picture: &Picture<'_>) -> Result<(), CheckError> {
    let stream = data.strip_prefix(&ZLIB_HEADER).and_then(<[u8]>::split_last_chunk);
    let (stream, expected_checksum) = stream.ok_or(CheckError::Stream("no zlib stream"))?;
    let mut reader = BitReader::new(stream);
    let mut checksum = Adler32::new();
    let mut pairs = PairTable::new();
    let zeros = vec![0; picture.row_bytes()];
    let mut filtered = vec![0; 1 + picture.row_bytes()];
    let mut y = 0;
    loop {
        let (is_last, words) = read_header(&mut reader)?;
        pairs.fill(&words[..END_OF_BLOCK]);
        while !reader.skip(words[END_OF_BLOCK]) {
            if y == picture.height as usize {
                return Err(CheckError::Stream("too many rows"));
            }
            let filters = Filter::ALL.into_iter();
            let filter = filters.into_iter().find(|filter| reader.skip(words[usize::from(filter.type_byte())]));
            let filter = filter.ok_or(CheckError::Stream("no known filter"))?;
            let (row, above) = picture.row_and_above(y, &zeros);
            filtered[0] = filter.type_byte();
            filter.apply(row, above, &mut filtered[1..]);
            checksum.write(&filtered);
            if !skip_row(&mut reader, &words, &pairs, &filtered[1..]) {
                return Err(CheckError::Pixels(y));
            }
            y += 1;
        }
        if is_last {
            break;
        }
    }
    if y != picture.height as usize {
        return Err(CheckError::Stream("too few rows"));
    }
    if !reader.is_at_end() {
        return Err(CheckError::Stream("data after its end"));
    }
    if checksum.finish().to_be_bytes() != *expected_checksum {
        return Err(CheckError::Stream("wrong checksum"));
    }
    Ok(())
}

/// Reads the header of a block: whether it is the last one, and the code words of its symbols.
fn read_header(reader: &mut BitReader<'_>) -> Result<(bool, Vec<Bits>), CheckError> {
    let damaged = CheckError::Stream("unexpected header of a block");
    let is_last = reader.read(1).ok_or(damaged)? == 1;
    if !HEADER.into_iter().all(|bits| reader.skip(bits)) {
        return Err(damaged);
    }
    let mut read_length = || {
        let bits = u32::try_from(reader.read(LENGTH_CODE_BITS)?).ok()?;
        u8::try_from(bits.reverse_bits() >> (32 - LENGTH_CODE_BITS)).ok()
    };
    let lengths: Option<Vec<u8>> = (0..SYMBOLS).map(|_| read_length()).collect();
    let (lengths, distance_length) = (lengths.ok_or(damaged)?, read_length().ok_or(damaged)?);
    let has_literals = lengths[..=END_OF_BLOCK].iter().all(|length| (1..=MAX_CODE_BITS).contains(length));
    match huffman::code_words(&lengths) {
        Some(words) if has_literals && u32::from(distance_length) == DISTANCE.count => Ok((is_last, words)),
        _ => Err(damaged),
    }
}

/// Skips the code words of a filtered row, if they decode to it. A word that is no literal must be a run.
#[multiversion(targets("x86_64+avx2+bmi1+bmi2+lzcnt+popcnt"))]
fn skip_row(reader: &mut BitReader<'_>, words: &[Bits], pairs: &PairTable, row: &[u8]) -> bool {
    let words_of = pairs.words();
    let mut position = 0;
    while position < row.len() {
        while let Some(bytes) = row[position..].first_chunk() {
            let [first, second] = words_of(*bytes);
            if first.fits_with(second) {
                if !reader.skip(first.then(second)) {
                    break;
                }
                position += bytes.len();
            } else if reader.skip(first) {
                position += bytes.len() / 2;
            } else {
                break;
            }
        }
        let Some(byte) = row.get(position) else { break };
        if reader.skip(words[usize::from(*byte)]) {
            position += 1;
            continue;
        }
        let Some(length) = read_run(reader, words) else { return false };
        let Some(repeated) = position.checked_sub(1) else { return false };
        let Some(run) = row.get(position..position + length) else { return false };
        if run.iter().any(|byte| *byte != row[repeated]) {
            return false;
        }
        position += length;
    }
    true
}

/// Reads a match with the distance 1; `None` if the next code word is something else.
fn read_run(reader: &mut BitReader<'_>, words: &[Bits]) -> Option<usize> {
    let mut used = LENGTHS.iter().zip(&words[FIRST_LENGTH..]).filter(|(_, word)| word.count > 0);
    let (base, extra_bits) = used.find(|(_, word)| reader.skip(**word))?.0;
    let extra = usize::try_from(reader.read(*extra_bits)?).ok()?;
    let length = base + extra;
    // The longest run has a symbol of its own. The other one that could express it is not defined for it.
    let is_defined = length < MAX_RUN || *extra_bits == 0;
    (is_defined && reader.skip(DISTANCE)).then_some(length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bits::BitWriter;

    /// A block with codes of these lengths.
    fn header(lengths: impl Fn(usize) -> u32, distance_length: u32) -> Vec<u8> {
        let mut writer = BitWriter::new(Vec::new());
        let all = (0..SYMBOLS).map(lengths).chain([distance_length]);
        // The highest bit of a length comes first.
        let words = all.map(|length| Bits::new(u64::from(length.reverse_bits() >> 28), LENGTH_CODE_BITS));
        [Bits::new(1, 1)].into_iter().chain(HEADER).chain(words).for_each(|bits| writer.write(bits));
        writer.finish()
    }

    /// A symbol without a code word would match everything.
    #[test]
    fn header_must_have_a_code_word_for_each_literal() {
        let is_accepted = |file: Vec<u8>| read_header(&mut BitReader::new(&file)).is_ok();
        // 226 words of 8 bits and 60 of 9 bits are a complete code.
        let all = |symbol| if symbol < 226 { 8 } else { 9 };
        assert!(is_accepted(header(all, 1)));
        assert!(!is_accepted(header(all, 2)), "another distance code");
        assert!(!is_accepted(header(|symbol| u32::from(symbol == 0 || symbol == END_OF_BLOCK), 1)));
        assert!(!is_accepted(header(|_| 9, 1)), "an incomplete code");
    }
}
