//! A conversation whose last message is not finished.

use serde_json::Value;

use super::{ChatRequest, Error};

/// Written behind the last message's content to find its end in what a template makes of it. transformers'
/// tag, with the space that shows whether the template strips contents.
const TAG: &str = "CONTINUE_FINAL_MESSAGE_TAG ";

/// What `render` makes of the messages up to the end of the last one's content, as transformers'
/// `continue_final_message` cuts it.
///
/// # Errors
/// When there is no last message of plain text, or the template leaves it out.
pub(super) fn render(
    request: &ChatRequest,
    render: impl FnOnce(&ChatRequest) -> Result<String, Error>,
) -> Result<String, Error> {
    let mut messages = request.messages.to_vec();
    let content = messages.last_mut().and_then(|message| message.get_mut("content"));
    let Some(Value::String(content)) = content else {
        return Err(Error::Continued("its content is no text"));
    };
    let stripped = content.trim().to_owned();
    content.push_str(TAG);
    let rendered = render(&ChatRequest { messages: &messages, ..*request })?;
    let left_out = Error::Continued("the chat template does not write it as it is");
    let Some(end) = rendered.rfind(TAG.trim_end()).filter(|_| rendered.contains(&stripped)) else {
        return Err(left_out);
    };
    let before = &rendered[..end];
    // Where the space is gone the template strips contents, and the message's own end would have been
    // stripped too.
    Ok(if rendered[end..].starts_with(TAG) { before } else { before.trim_end() }.to_owned())
}
