//! How much more or less than usual to do: the environment variable `STATSFS_SOAK`, a number such as `10`
//! or, on a slow machine, a fraction such as `1/5`.

/// Rounds or counts: so many unless `STATSFS_SOAK` says something else, and at least one.
///
/// # Panics
/// If it says what is no number.
pub fn rounds(n: u32) -> u32 {
    match std::env::var("STATSFS_SOAK") {
        Ok(text) => scaled(n, &text).unwrap_or_else(|| {
            panic!("STATSFS_SOAK={text:?}: write a number or a fraction, 10 or 1/5")
        }),
        Err(_) => n,
    }
}

/// A number of rounds multiplied by what a text says.
pub(crate) fn scaled(n: u32, text: &str) -> Option<u32> {
    let (times, divisor) = text.split_once('/').unwrap_or((text, "1"));
    let (times, divisor): (u32, u32) = (times.parse().ok()?, divisor.parse().ok()?);
    if times == 0 || divisor == 0 {
        return None;
    }
    Some((u64::from(n) * u64::from(times) / u64::from(divisor)).clamp(1, u32::MAX.into()) as u32)
}
