//! The page: a record as one HTML file.

use super::Record;

/// The page of `record`, complete in itself.
pub fn page(record: &Record) -> String {
    // A script element ends at the first "</", wherever it stands; JSON may write the slash as an escape.
    let data = serde_json::to_string(record).unwrap_or_default().replace("</", "<\\/");
    include_str!("page.html").replacen("/*RECORD*/null", &data, 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_a_prompt_cannot_leave_the_script() {
        let record =
            Record { tokens: vec!["</script><script>alert(1)</script>".into()], ..Record::default() };
        let page = page(&record);
        let scripts = page.matches("</script>").count();
        assert_eq!(scripts, include_str!("page.html").matches("</script>").count());
        assert!(page.contains("<\\/script>"));
    }
}
