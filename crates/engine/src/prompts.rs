//! Prompts to token ids, once per prompt (token in, token out: nothing is ever tokenized again).

use std::path::Path;
use std::sync::{Arc, OnceLock};

use anyhow::Context as _;
use model::{ChatRequest, ChatTemplate, Tokenizer};
use types::PromptContent;

use super::grammar::{Grammar, GrammarCompiler, GrammarError, GrammarSource};

/// Tokenizer and chat template of the policy.
pub struct PromptEncoder {
    tokenizer: Arc<Tokenizer>,
    template: Option<ChatTemplate>,
    /// Made when the first grammar is asked for.
    grammars: OnceLock<Result<GrammarCompiler, GrammarError>>,
}

impl std::fmt::Debug for PromptEncoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PromptEncoder")
            .field("has_template", &self.template.is_some())
            .finish_non_exhaustive()
    }
}

impl PromptEncoder {
    /// Encodes with a tokenizer and, where prompts are chat messages, a template.
    pub fn new(tokenizer: Arc<Tokenizer>, template: Option<ChatTemplate>) -> Self {
        Self { tokenizer, template, grammars: OnceLock::new() }
    }

    /// Reads the chat template from the model folder that `tokenizer` is from.
    ///
    /// # Errors
    /// When the template is broken.
    pub fn load(folder: &Path, tokenizer: Arc<Tokenizer>) -> anyhow::Result<Self> {
        let template = ChatTemplate::load(folder, tokenizer.special().clone());
        Ok(Self::new(tokenizer, template.context("read the policy's chat template")?))
    }

    /// A grammar for the tokens of the vocabulary. It blocks: the first time for about a tenth of a second.
    ///
    /// # Errors
    /// What is wrong with the source.
    pub fn compile(&self, source: &GrammarSource) -> Result<Grammar, GrammarError> {
        let compiler = self.grammars.get_or_init(|| GrammarCompiler::new(&self.tokenizer));
        compiler.as_ref().map_err(Clone::clone)?.compile(source)
    }

    /// The token ids of a prompt.
    ///
    /// # Errors
    /// When chat messages come without a chat template, or do not render.
    pub fn encode(&self, content: &PromptContent) -> anyhow::Result<Arc<[u32]>> {
        let tokens = match content {
            PromptContent::Tokens(tokens) => tokens.clone(),
            PromptContent::Text(text) => self.tokenizer.encode(text, true)?,
            PromptContent::Messages(messages) => {
                let messages: Vec<serde_json::Value> =
                    serde_json::from_str(messages).context("the prompt's messages are not a JSON list")?;
                return self.encode_chat(&ChatRequest {
                    messages: &messages,
                    add_generation_prompt: true,
                    ..ChatRequest::default()
                });
            }
        };
        Ok(tokens.into())
    }

    /// The token ids of a conversation.
    ///
    /// # Errors
    /// When there is no chat template, or it does not render the conversation.
    pub fn encode_chat(&self, request: &ChatRequest<'_>) -> anyhow::Result<Arc<[u32]>> {
        let template = self.template.as_ref();
        let template =
            template.context("the prompt has chat messages, but the policy has no chat template")?;
        // A template writes its special tokens itself.
        Ok(self.tokenizer.encode(&template.render(request)?, false)?.into())
    }

    /// The chat template, if the model has one.
    pub fn template(&self) -> Option<&ChatTemplate> {
        self.template.as_ref()
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.tokenizer
    }

    /// The tokens that end a response.
    pub fn eos_ids(&self) -> Arc<[u32]> {
        self.tokenizer.eos_ids().into()
    }
}
