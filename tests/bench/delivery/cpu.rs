//! The CPU that processes take, from `/proc`.

use anyhow::Context;

/// A process' own CPU seconds.
pub fn own(pid: u32) -> anyhow::Result<f64> {
    let times = times(pid)?;
    Ok(times[0] + times[1])
}

/// Those of its children that have ended.
pub fn children(pid: u32) -> anyhow::Result<f64> {
    let times = times(pid)?;
    Ok(times[2] + times[3])
}

/// utime, stime, cutime, cstime; Linux counts them in hundredths for everybody who asks.
fn times(pid: u32) -> anyhow::Result<[f64; 4]> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).with_context(|| format!("process {pid}"))?;
    // The name, in parentheses, may contain anything.
    let (_, fields) = text.rsplit_once(')').context("a name in parentheses")?;
    let fields: Vec<f64> = fields.split_whitespace().skip(11).take(4).flat_map(str::parse).collect();
    let fields: [f64; 4] = fields.try_into().ok().context("four times")?;
    Ok(fields.map(|hundredths| hundredths / 100.0))
}

/// The middle of values; of an even number, the upper one of the two.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
