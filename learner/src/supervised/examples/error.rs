//! What is wrong with a line of examples.

/// What is wrong with a line.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExampleError {
    /// It is no prompt with a response.
    #[error(
        "is none of {{\"messages\": [..]}}, {{\"prompt\", \"response\"}} or {{\"prompt\", \"completion\"}} (text or \
         messages), {{\"prompt_tokens\", \"response_tokens\"}}"
    )]
    NoAnswer,
    /// It is no pair.
    #[error(
        "is none of {{\"chosen\": [messages], \"rejected\": [messages]}} (with the prompt's messages in front of both, \
         or \"prompt\" beside them), {{\"prompt\", \"chosen\", \"rejected\"}} (text), {{\"messages\": [..], \"chosen\", \
         \"rejected\"}}, {{\"prompt_tokens\", \"chosen_tokens\", \"rejected_tokens\"}}"
    )]
    NoPair,
    /// Chosen and rejected do not answer the same.
    #[error("chosen and rejected have no prompt in common: their first messages differ")]
    NoCommonPrompt,
    /// It does not say whether the response is wanted.
    #[error("has no label (true or false)")]
    NoLabel,
    /// Its margin cannot be subtracted.
    #[error("margin is {0}, must be a finite number")]
    Margin(f32),
    /// It needs a tokenizer.
    #[error("is text, but the model's folder has no tokenizer.json")]
    NoTokenizer,
    /// It needs a chat template.
    #[error("has messages, but the model has no chat template")]
    NoChatTemplate,
    /// It holds nothing that a model is to learn to say.
    #[error("has no message of the assistant behind another one")]
    NoAssistant,
    /// Its last message is nothing that a model is to learn to say.
    #[error("its last message is not the assistant's")]
    NotAssistant,
    /// The template says something else before a response than without it.
    #[error(
        "the chat template does not continue its own prompt, so that the response cannot be told apart (templates that \
         take thoughts out of earlier turns do this: set assistant_turns = \"last\")"
    )]
    TemplateChangesPrompt,
    /// A response without a prompt: no row predicts its first token.
    #[error("its prompt has no tokens")]
    EmptyPrompt,
    /// A prompt without a response.
    #[error("its response has no tokens")]
    EmptyResponse,
    /// The tokenizer refused.
    #[error(transparent)]
    Tokenizer(#[from] model::tokenizer::Error),
    /// The chat template refused.
    #[error(transparent)]
    Chat(#[from] model::chat::Error),
}

/// What comes of a line.
pub(super) type LineResult<T> = std::result::Result<T, ExampleError>;
