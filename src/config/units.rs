//! Durations and sizes as people write them: `500ms`, `5s`, `10m`, `1h30m`; `64KiB`, `1MB`, `4096`.
//!
//! A duration needs its unit, since `5` has meant seconds in one program and milliseconds in the next. A size without a
//! unit is in bytes.

use std::time::Duration;

/// Reads a duration: whole numbers with `ms`, `s`, `m`, `h` or `d`, largest first. `0` needs no unit.
///
/// # Errors
/// A text that says what was expected.
pub fn duration(text: &str) -> Result<Duration, String> {
    const EXPECTED: &str = "expected a duration with its unit, such as 500ms, 5s, 10m or 1h30m";
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut rest = text.trim();
    if rest.is_empty() {
        return Err(EXPECTED.into());
    }
    let mut total_ms = 0u64;
    let mut unit_before_ms = u64::MAX;
    while !rest.is_empty() {
        let (number, after) = leading_number(rest).ok_or(EXPECTED)?;
        let unit_length = after.find(|character: char| !character.is_ascii_alphabetic()).unwrap_or(after.len());
        let unit_ms: u64 = match &after[..unit_length] {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(EXPECTED.into()),
        };
        if unit_ms >= unit_before_ms {
            return Err(EXPECTED.into());
        }
        unit_before_ms = unit_ms;
        let part_ms = number.checked_mul(unit_ms).ok_or("the duration is too long")?;
        total_ms = total_ms.checked_add(part_ms).ok_or("the duration is too long")?;
        rest = &after[unit_length..];
    }
    Ok(Duration::from_millis(total_ms))
}

/// Reads a size in bytes: a whole number, alone or with `KiB`, `MiB`, `GiB`, `kB`, `MB` or `GB`.
///
/// # Errors
/// A text that says what was expected.
pub fn size(text: &str) -> Result<usize, String> {
    const EXPECTED: &str = "expected a size such as 65536, 64KiB or 64MiB";
    let (number, unit) = leading_number(text.trim()).ok_or(EXPECTED)?;
    let unit_bytes: u64 = match unit.trim_start() {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "kB" | "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        _ => return Err(EXPECTED.into()),
    };
    let bytes = number.checked_mul(unit_bytes).and_then(|bytes| usize::try_from(bytes).ok());
    match bytes {
        Some(bytes) if bytes > 0 => Ok(bytes),
        Some(_) => Err("expected more than zero".into()),
        None => Err("the size is too large".into()),
    }
}

fn leading_number(text: &str) -> Option<(u64, &str)> {
    let length = text.find(|character: char| !character.is_ascii_digit()).unwrap_or(text.len());
    Some((text[..length].parse().ok()?, &text[length..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units() {
        for (text, expected_ms) in
            [("500ms", 500), ("5s", 5_000), ("10m", 600_000), ("1h30m", 5_400_000), ("2d", 172_800_000), ("0", 0)]
        {
            assert_eq!(duration(text), Ok(Duration::from_millis(expected_ms)), "{text}");
        }
        for text in
            ["", "5", "s", "5 s", "1.5s", "-1s", "5sec", "30m1h", "1s1s", "99999999999999999999s", "9999999999999999d"]
        {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_are_bytes_or_have_units() {
        for (text, expected) in [("4096", 4096), ("64KiB", 65_536), ("1 MB", 1_000_000), ("2GiB", 2 << 30), ("7B", 7)] {
            assert_eq!(size(text), Ok(expected), "{text}");
        }
        for text in ["", "KiB", "0", "1.5MiB", "-1", "64 parsecs", "99999999999GiB"] {
            assert!(size(text).is_err(), "{text}");
        }
    }
}
