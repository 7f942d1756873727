//! What the source has to keep to, and no compiler checks.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Every file below a directory with this ending; none where there is no such directory.
fn files(directory: &Path, ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let Ok(entries) = fs::read_dir(directory) else { return found };
    for path in entries.map(|entry| entry.expect("an entry").path()) {
        if path.is_dir() {
            found.extend(files(&path, ending));
        } else if path.extension().is_some_and(|extension| extension == ending) {
            found.push(path);
        }
    }
    found
}

/// The reading order is the order in which a change travels.
#[test]
fn a_module_imports_only_what_stands_above_it() {
    let lib = text(&root().join("src/lib.rs"));
    let modules = lib.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'));
    let place: HashMap<&str, usize> = modules.enumerate().map(|(at, module)| (module, at)).collect();
    assert!(place.len() > 10, "lib.rs lists its modules: {place:?}");
    let source = root().join("src");
    let mut wrong = Vec::new();
    for file in files(&source, "rs") {
        let path = file.strip_prefix(&source).expect("a file below src");
        let first = path.iter().next().and_then(|part| part.to_str()).expect("a name");
        let Some(&own) = place.get(first.trim_end_matches(".rs")) else { continue };
        for (number, line) in text(&file).lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            for after in code.split("crate::").skip(1) {
                let name = after.split(|c: char| !c.is_ascii_lowercase() && c != '_').next().unwrap_or_default();
                assert!(!after.starts_with('{'), "{}:{}: one `use` per module", path.display(), number + 1);
                if place.get(name).is_some_and(|&at| at > own) {
                    wrong.push(format!("{}:{}: {}", path.display(), number + 1, line.trim()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "imports of what stands below:\n{}", wrong.join("\n"));
}

#[test]
fn a_file_says_first_what_it_is() {
    let root = root();
    for file in ["src", "tests/it"].iter().flat_map(|directory| files(&root.join(directory), "rs")) {
        assert!(text(&file).starts_with("//! "), "{} does not open with what it is", file.display());
    }
}

/// README.md and everything in docs/.
fn documents() -> String {
    let mut documents = text(&root().join("README.md"));
    documents.extend(files(&root().join("docs"), "md").iter().map(|file| text(file)));
    documents
}

/// An operator finds out what a figure means without reading the source.
#[test]
fn every_figure_is_documented() {
    let source = text(&root().join("src/metrics.rs"));
    let (code, _tests) = source.split_once("#[cfg(test)]").expect("metrics.rs has tests");
    let figures: Vec<&str> = code.split('"').filter(|text| text.starts_with("rowcast_")).collect();
    assert!(figures.len() > 10, "{figures:?}");
    let documents = documents();
    let missing: Vec<&&str> = figures.iter().filter(|figure| !documents.contains(**figure)).collect();
    assert!(missing.is_empty(), "in neither README.md nor docs/: {missing:?}");
}

/// So does one who looks for a setting.
#[test]
fn every_setting_is_documented() {
    let source = text(&root().join("src/config.rs"));
    let settings: Vec<&str> =
        source.split("env = \"").skip(1).map(|after| after.split('"').next().unwrap_or_default()).collect();
    assert!(settings.len() > 10, "{settings:?}");
    let documents = documents();
    let missing: Vec<&&str> = settings.iter().filter(|setting| !documents.contains(&format!("`{setting}`"))).collect();
    assert!(missing.is_empty(), "in neither README.md nor docs/: {missing:?}");
}
