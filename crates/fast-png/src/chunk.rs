//! Chunks of a PNG file.

/// The first bytes of each PNG file.
pub(crate) const SIGNATURE: [u8; 8] = *b"\x89PNG\r\n\x1a\n";
/// Bytes of a chunk besides its data: length, type and CRC.
const CHUNK_OVERHEAD: usize = 12;

/// Appends a chunk; `write_data` appends its data.
pub(crate) fn write(file: &mut Vec<u8>, kind: [u8; 4], write_data: impl FnOnce(&mut Vec<u8>)) {
    let start = file.len();
    file.extend_from_slice(&[0; 4]);
    file.extend_from_slice(&kind);
    write_data(file);
    let length = u32::try_from(file.len() - start - 8).expect("the data of a chunk is shorter than 2 GiB");
    file[start..start + 4].copy_from_slice(&length.to_be_bytes());
    let crc = crc32fast::hash(&file[start + 4..]);
    file.extend_from_slice(&crc.to_be_bytes());
}

/// The data of `IHDR` for 8-bit RGB without interlacing.
pub(crate) fn header_data(width: u32, height: u32) -> [u8; 13] {
    let ([a, b, c, d], [e, f, g, h]) = (width.to_be_bytes(), height.to_be_bytes());
    // Bit depth 8, colour type 2 (RGB), compression, filter method and interlacing 0.
    [a, b, c, d, e, f, g, h, 8, 2, 0, 0, 0]
}

/// A chunk of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Chunk<'a> {
    pub(crate) kind: [u8; 4],
    pub(crate) data: &'a [u8],
}

/// Splits the first chunk off. `None` if it is incomplete or its CRC is wrong.
pub(crate) fn split_first(file: &[u8]) -> Option<(Chunk<'_>, &[u8])> {
    let length = u32::from_be_bytes(*file.first_chunk()?) as usize;
    let (chunk, rest) = file.split_at_checked(length.checked_add(CHUNK_OVERHEAD)?)?;
    let (checked, crc) = chunk[4..].split_last_chunk()?;
    let (kind, data) = checked.split_first_chunk()?;
    (crc32fast::hash(checked) == u32::from_be_bytes(*crc)).then_some((Chunk { kind: *kind, data }, rest))
}
