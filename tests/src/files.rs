//! Files that events speak of.

use anyhow::Result;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::World;

/// Every asset of a terminal event is a whole file of the right size, and the indices are these.
///
/// # Errors
///
/// Where a file cannot be read or is no picture.
pub fn assert_files(world: &World, data: &Value, indices: &[u32]) -> Result<()> {
    let assets = data["assets"].as_array().expect("a list");
    let found: Vec<_> = assets.iter().map(|asset| asset["index"].as_u64().unwrap_or_default()).collect();
    assert_eq!(found, indices.iter().map(|index| u64::from(*index)).collect::<Vec<_>>());
    for asset in assets {
        let path = asset["file_path"].as_str().expect("a path");
        let bytes = std::fs::read(world.file(path))?;
        let picture = image::load_from_memory(&bytes)?;
        assert_eq!((picture.width(), picture.height()), (1920, 1080), "{path}");
        assert_eq!(asset["size_bytes"], bytes.len());
        assert_eq!(asset["sha256"], format!("{:x}", bytes::Bytes::copy_from_slice(&Sha256::digest(&bytes))));
        assert_eq!(asset["format"], "png");
        let uri = url::Url::parse(asset["uri"].as_str().expect("a URI"))?;
        assert_eq!(uri.to_file_path().expect("a file").canonicalize()?, world.file(path).canonicalize()?);
    }
    Ok(())
}
