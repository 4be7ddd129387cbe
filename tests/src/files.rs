//! Checks of the files that events refer to.

use anyhow::Result;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::TestEnv;

/// Asserts that every asset of a terminal event is a complete 1920x1080 PNG file and that the indices match.
///
/// # Errors
///
/// If a file cannot be read or decoded.
pub fn assert_files(env: &TestEnv, data: &Value, indices: &[u32]) -> Result<()> {
    let assets = data["assets"].as_array().expect("assets is an array");
    let found: Vec<_> = assets.iter().map(|asset| asset["index"].as_u64().unwrap_or_default()).collect();
    assert_eq!(found, indices.iter().map(|index| u64::from(*index)).collect::<Vec<_>>());
    for asset in assets {
        let path = asset["file_path"].as_str().expect("file_path is a string");
        let bytes = std::fs::read(env.stored_path(path))?;
        let image = image::load_from_memory(&bytes)?;
        assert_eq!((image.width(), image.height()), (1920, 1080), "{path}");
        assert_eq!(asset["size_bytes"], bytes.len());
        assert_eq!(asset["sha256"], format!("{:x}", bytes::Bytes::copy_from_slice(&Sha256::digest(&bytes))));
        assert_eq!(asset["format"], "png");
        let uri = url::Url::parse(asset["uri"].as_str().expect("uri is a string"))?;
        assert_eq!(
            uri.to_file_path().expect("uri is a file URL").canonicalize()?,
            env.stored_path(path).canonicalize()?
        );
    }
    Ok(())
}
