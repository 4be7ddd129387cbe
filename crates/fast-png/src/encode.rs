//! The encoder.

use multiversion::multiversion;
use simd_adler32::Adler32;

use crate::Picture;
use crate::bits::BitWriter;
use crate::chunk::{self, SIGNATURE};
use crate::deflate::{self, BlockCode, END_OF_BLOCK, MAX_CODE_BITS, Sample, ZLIB_HEADER};
use crate::filter::Filter;
use crate::huffman::PairTable;

/// Rows of a block. A larger block follows the picture less; a smaller one spends more time on its code.
const BLOCK_ROWS: usize = 216;
/// Every n-th row of a block is sampled. A prime: rows that were scaled up repeat a pattern.
const SAMPLE_STEP: usize = 23;

/// Encodes a picture, with these texts before the pixels: keyword (1 to 79 characters of Latin-1) and text.
///
/// A text that Latin-1 can hold becomes a `tEXt` chunk, which more programs read than `iTXt`.
pub fn encode<'a>(picture: &Picture<'_>, texts: impl IntoIterator<Item = (&'a str, &'a str)>) -> Vec<u8> {
    let mut file = Vec::with_capacity(picture.pixels.len() * 3 / 4 + 1_024);
    file.extend_from_slice(&SIGNATURE);
    chunk::write(&mut file, *b"IHDR", |data| data.extend(chunk::header_data(picture.width, picture.height)));
    for (keyword, text) in texts {
        write_text(&mut file, keyword, text);
    }
    chunk::write(&mut file, *b"IDAT", |data| {
        data.extend(ZLIB_HEADER);
        let (stream, checksum) = write_blocks(picture, std::mem::take(data));
        *data = stream;
        data.extend(checksum.to_be_bytes());
    });
    chunk::write(&mut file, *b"IEND", |_| {});
    file
}

fn write_text(file: &mut Vec<u8>, keyword: &str, text: &str) {
    let latin_1 = |text: &str| text.chars().map(|c| u8::try_from(u32::from(c)).ok()).collect::<Option<Vec<u8>>>();
    let keyword = latin_1(keyword).expect("the keyword is Latin-1");
    if let Some(text) = latin_1(text) {
        chunk::write(file, *b"tEXt", |data| data.extend([&keyword[..], &[0], &text].concat()));
    } else {
        // Not compressed, without language and translated keyword.
        chunk::write(file, *b"iTXt", |data| data.extend([&keyword[..], &[0; 5], text.as_bytes()].concat()));
    }
}

/// Appends the DEFLATE stream; returns the buffer and the Adler-32 of the filtered rows.
fn write_blocks(picture: &Picture<'_>, buffer: Vec<u8>) -> (Vec<u8>, u32) {
    let (mut writer, mut checksum) = (BitWriter::new(buffer), Adler32::new());
    let mut pairs = PairTable::new();
    let zeros = vec![0; picture.row_bytes()];
    // The filter type and the filtered bytes.
    let mut filtered = vec![0; 1 + picture.row_bytes()];
    let height = picture.height as usize;
    for start in (0..height).step_by(BLOCK_ROWS) {
        let end = (start + BLOCK_ROWS).min(height);
        let (filter, code) = choose_filter(picture, start..end, &zeros, &mut filtered[1..]);
        for bits in code.header(end == height) {
            writer.write(bits);
        }
        code.fill(&mut pairs);
        for y in start..end {
            let (row, above) = picture.row_and_above(y, &zeros);
            filtered[0] = filter.type_byte();
            filter.apply(row, above, &mut filtered[1..]);
            checksum.write(&filtered);
            write_row(&mut writer, &code, &pairs, &filtered);
        }
        writer.write(code.word(END_OF_BLOCK));
    }
    (writer.finish(), checksum.finish())
}

/// The filter whose sample needs the fewest bits, and the code of that sample.
fn choose_filter(
    picture: &Picture<'_>,
    rows: std::ops::Range<usize>,
    zeros: &[u8],
    filtered: &mut [u8],
) -> (Filter, BlockCode) {
    // Not the first row: the first one of a picture has no row above.
    let first = rows.start + (SAMPLE_STEP / 2).min(rows.len() - 1);
    let samples = Filter::ALL.map(|filter| {
        let mut sample = Sample::new();
        for y in (first..rows.end).step_by(SAMPLE_STEP) {
            let (row, above) = picture.row_and_above(y, zeros);
            filter.apply(row, above, filtered);
            sample.add(filtered);
        }
        (filter, sample)
    });
    let by_size =
        |one: &(Filter, Sample), other: &(Filter, Sample)| one.1.entropy_bits().total_cmp(&other.1.entropy_bits());
    let (filter, sample) = samples.into_iter().min_by(by_size).expect("there are filters");
    (filter, sample.into_code())
}

#[multiversion(targets("x86_64+avx2+bmi1+bmi2+lzcnt+popcnt"))]
fn write_row(writer: &mut BitWriter, code: &BlockCode, pairs: &PairTable, filtered: &[u8]) {
    let (filter, bytes) = filtered.split_first().expect("a row begins with its filter type");
    writer.write(code.word((*filter).into()));
    if code.has_runs() && deflate::has_runs(bytes) {
        return code.for_each_token(bytes, |bits| writer.write(bits));
    }
    let (eights, rest) = bytes.as_chunks();
    let (words, max_bytes) = (pairs.words(), bytes.len() * usize::from(MAX_CODE_BITS) / 8 + 1);
    writer.write_pairs(eights.iter().map(|bytes| words(*bytes)), max_bytes);
    for byte in rest {
        writer.write(code.word((*byte).into()));
    }
}
