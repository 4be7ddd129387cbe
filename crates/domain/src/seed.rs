//! Seeds: the same request with the same seed makes the same picture.

/// The seed of an image of a job, from 1 to `max`; 0 lets the API choose.
///
/// A job's seed that is not 0 gives its image of index 1 that seed and each further one the next, so that pictures differ and the job can
/// be repeated exactly. After `max` comes 1, since 0 would be no seed. A job's seed above `max` is left as it is, to be refused by name.
pub fn of_image(job_seed: u32, index: u32, max: u32) -> u32 {
    if job_seed == 0 || job_seed > max {
        return job_seed;
    }
    let steps = u64::from(index.saturating_sub(1));
    let seed = (u64::from(job_seed) - 1 + steps) % u64::from(max) + 1;
    u32::try_from(seed).unwrap_or(max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_of_a_job_have_seeds_one_after_another() {
        let check = |job_seed, index, expected| {
            assert_eq!(of_image(job_seed, index, u32::MAX), expected, "{job_seed} {index}");
        };
        check(0, 1, 0);
        check(0, 200, 0);
        check(7, 1, 7);
        check(7, 2, 8);
        check(7, 200, 206);
        check(u32::MAX, 1, u32::MAX);
        check(u32::MAX, 2, 1);
        check(u32::MAX - 1, 3, 1);
        assert_eq!(of_image(u32::MAX, 1, u32::MAX - 1), u32::MAX);
        assert_eq!(of_image(u32::MAX - 1, 2, u32::MAX - 1), 1);
    }
}
