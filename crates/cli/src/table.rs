//! Tables on the terminal, all in one style.

use comfy_table::{CellAlignment, Table, presets};

/// An empty table with these columns.
pub(crate) fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY);
    table.set_header(header.to_vec());
    table
}

/// An empty table of figures: all columns but the first are aligned to the right.
pub(crate) fn table_of_figures(header: &[&str]) -> Table {
    let mut table = table(header);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}
