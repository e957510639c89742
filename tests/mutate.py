"""Does the suite notice a broken program? Plants one mistake at a time and runs the tests near it.

    python -m tests.mutate                          # the list below, about four minutes
    python -m tests.mutate clip best                # those whose name has one of these words
    python -m tests.mutate --random 100 --seed 0    # mechanical mistakes at random places
    python -m tests.mutate --random 20 train.py     # of one module

Each mistake is planted in a copy of the project; `--jobs` of them are tried at once. Prints a
Markdown table with the test that failed first; those that none noticed stand again below it. Ends
with 1 if one of the list went unnoticed or its text is no longer in the program.

A random mistake is tried on every test file that imports its module, which takes minutes where none
notices it. It may be no mistake (one less image in a chunk, a longer timeout): read the survivors.
"""

import argparse
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.mutations import mutations

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted(path.stem for path in ROOT.glob("*.py"))
TEST_SECONDS = 150  # for one test, which is hung after it
NOTHING = "**nothing**"
# name, file, what stands there, what is put in its place, where the suite should notice
FAULTS = [
    ("a window's gradient divided by K, not weighed by frames", "train.py",
     'share = frames * world.size / len(window)', 'share = 1 / args.accumulate',
     "test_train.py -k window"),
    ("the short last window dropped", "train.py",
     'self.steps = math.ceil(len(training) / window)', 'self.steps = int(len(training) / window)',
     "test_train.py -k training_mode"),
    ("epoch left out of the seed of the order", "data.py",
     "np.array([seed, epoch], np.uint64)", "np.array([seed, 0], np.uint64)",
     "test_data.py -k order"),
    ("epoch left out of the draws' seed", "augment.py",
     'struct.pack("<4q", seed, epoch, step, rank)', 'struct.pack("<4q", seed, 0, step, rank)',
     "test_augment.py -k generator"),
    ("epoch left out of the dropout's seed", "train.py",
     'seed_everything(args.seed + self.epochs + 10_000 * self.world.rank)', 'pass',
     "test_train.py -k resumed"),
    ("clipping before unscaling", "train.py",
     '            self.scaler.unscale_(self.optimizer)\n', '',
     "test_train.py -k clipping"),
    (".eval() forgotten", "evaluate.py",
     '    net.eval()\n\n    began', '    began',
     "test_flags.py -k sgd"),
    (".train() forgotten after evaluation", "train.py",
     '        self.net.train()\n', '',
     "test_train.py -k training_mode"),
    ("an average taken over a step that overflowed", "train.py",
     'if self.ema is not None and norm.isfinite():', 'if self.ema is not None:',
     "test_faults.py -k f18"),
    ("the best score not restored", "train.py",
     'self.epochs, self.best = state["epoch"], state["best"]', 'self.epochs = state["epoch"]',
     "test_train.py -k best_survives"),
    ("NaN becomes the best", "train.py",
     'line["val_f1"] > trainer.best["f1"]', 'not line["val_f1"] <= trainer.best["f1"]',
     "test_train.py -k best_survives"),
    ("the optimizer not restored", "train.py",
     'restore("optimizer.state", given', '("optimizer.state", given',
     "test_train.py -k resumed"),
    ("the average's weights not saved", "train.py",
     'None if self.ema is None else self.scored.state_dict()', 'None',
     "test_train.py -k average"),
    ("the threshold chosen anew in evaluate.py", "evaluate.py",
     'report = score(probabilities, dataset.labels, names, frequency, threshold, chosen_on)',
     'report = score(probabilities, dataset.labels, names, frequency)',
     "test_evaluate.py -k scores"),
    ("a blend's file ignored", "evaluate.py",
     'weights = metrics.blend_weights([given', 'metrics.blend_weights([given',
     "test_evaluate.py -k blend"),
    ("a blend of weights that are no shares", "metrics.py",
     "abs(weights.sum() - 1) < 1e-6", "True", "test_metrics.py -k blend"),
    ("a fitted blend worse than one of its members", "metrics.py",
     "itertools.product(range(21)", "itertools.product(range(16)", "test_metrics.py -k blend"),
    ("a probability taken for a logit in training's scores", "train.py",
     'dtype=torch.float64).logit().item()', 'dtype=torch.float64).item()',
     "test_train.py -k mean_loss"),
    ("an explanation of a letterbox not cut to the frame", "evaluate.py",
     'crop(heat, *transform.frame_box(*size))', 'heat',
     "test_evaluate.py -k explanation"),
    ("a loss that is not finite not noticed", "train.py",
     'torch.where(loss.isfinite(), self.steps, step)',
     'torch.where(loss.isnan() & False, step, self.steps)',
     "test_train.py -k divergence"),
    ("the learning rate a step late", "train.py",
     'factor = lr_factor(self.args, self.epochs * self.steps + step, self.steps)',
     'factor = lr_factor(self.args, self.epochs * self.steps + step + 1, self.steps)',
     "test_faults.py -k f18"),
    ("the raw weights where the average was scored", "evaluate.py",
     '"average" if self.state["average"] else "model"', '"model"',
     "test_evaluate.py -k scores"),
    ("SGD without momentum", "train.py",
     '{"momentum": MOMENTUM}', '{"momentum": 0}',
     "test_flags.py -k sgd"),
    ("momentum that nobody wrote, where the first step overflows", "train.py",
     'state["momentum_buffer"] = torch.zeros_like(parameter)', "pass",
     "test_faults.py -k f18"),
    ("a rate that is logged and not set", "train.py",
     'group["initial_lr"] * factor', 'group["initial_lr"]', "test_flags.py -k milestones"),
    ("the head at the backbone's rate", "train.py",
     "args.lr, args.head_lr, args.weight_decay", "args.lr, args.lr, args.weight_decay",
     "test_flags.py -k head-lr"),
    ("positive weights upside down", "train.py",
     'weight = (1 - frequency) / frequency.clamp(min=1e-6)', 'weight = frequency / (1 - frequency)',
     "test_flags.py -k pos-weight"),
    ("positive weights of the validation labels", "train.py",
     'trainer = make_trainer(args, saved, training, validation, world)',
     'trainer = make_trainer(args, saved, training, validation, world)\n    frequency = '
     'validation.labels.mean(0)\n    trainer.loss.pos_weight = pos_weight(frequency, args)',
     "test_flags.py -k alone"),
    ("an average without batch norm's statistics", "train.py",
     "use_buffers=True", "use_buffers=False", "test_flags.py -k ema"),
    ("an average that forgets its steps in a resume", "train.py",
     '            self.ema.n_averaged.fill_(state["averaged"])\n', '',
     "test_flags.py -k goes_on"),
    ("a loss of 16 bits", "mish_kernel.py",
     "    logits = wide(logits)\n    return F", "    return F", "test_train.py -k float32"),
    ("a product that the compiler fuses with what is added to it", "mish_kernel.py",
     "t = tl.fma(xc, 1.4426950216293335, 1e-30)", "t = xc * 1.4426950216293335",
     "test_mish_kernel.py -k budget"),
    ("a second derivative of the head that is 0", "mish_kernel.py",
     "op = head_backward_op if torch.is_grad_enabled() else run_head_backward",
     "op = run_head_backward", "test_mish_kernel.py -k interpreter"),
    ("a GPU's first step taken for a measure of the others", "progress.py",
     "self.slow, self.warm = row[\"seconds\"], self.seen", "pass", "test_train.py -k no_measure"),
    ("a member seen with the first one's size and colours", "evaluate.py",
     'predict(member.net, dataset, member.transform, args, world)',
     'predict(member.net, dataset, members[0].transform, args, world)',
     "test_evaluate.py -k differently"),
    ("an explanation of the least likely frames", "evaluate.py",
     "argsort(descending=True)", "argsort()", "test_evaluate.py -k likeliest"),
    ("best.pt with the optimizer in it", "checkpoint.py",
     'state | {"optimizer": None, "scaler": None, "best_sha256": None}',
     'state | {"best_sha256": None}', "test_flags.py -k keys"),
    ("tensors that go back to the device they were saved on", "schema.py",
     'torch.load(file, map_location="cpu"', "torch.load(file, map_location=None",
     "test_checkpoint.py -k another_device"),
    ("no fsync before the rename", "checkpoint.py",
     "        os.fsync(file.fileno())\n", "", "test_checkpoint.py -k disk"),
    ("the old file removed before the new one is there", "checkpoint.py",
     "        os.replace(temporary, path)", "        path.unlink(missing_ok=True)\n"
     "        os.replace(temporary, path)", "test_faults.py -k f1_"),
    ("written in place", "checkpoint.py",
     'temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")', "temporary = path",
     "test_checkpoint.py -k full"),
    ("the hash not compared", "checkpoint.py",
     "if hashlib.sha256(memoryview(content)[:-64]).hexdigest().encode() != content[-64:]:",
     "if False:",
     "test_checkpoint.py -k bit"),
    ("code in a checkpoint runs", "schema.py",
     'torch.load(file, map_location="cpu", weights_only=True)',
     'torch.load(file, map_location="cpu", weights_only=False)', "test_checkpoint.py -k pickle"),
    ("no lock", "checkpoint.py",
     "fcntl.lockf(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)", "pass",
     "test_checkpoint.py -k in_use"),
    ("a full disk ends the training", "train.py",
     "    except OSError as error:\n        print(f\"train.py: warning",
     "    except ZeroDivisionError as error:\n        print(f\"train.py: warning",
     "test_faults.py -k f11"),
    ("Ctrl-C in a decoder taken for a bad image", "distributed.py",
     "class Interrupted(KeyboardInterrupt)", "class Interrupted(Exception)",
     "test_faults.py -k f15"),
    ("workers outlive a killed run", "data.py",
     "ctypes.CDLL(None).prctl(1, signal.SIGKILL)", "pass", "test_faults.py -k f16"),
    ("a worker that hangs is waited for", "data.py",
     "timeout=WORKER_SECONDS if workers else 0", "timeout=0", "test_faults.py -k f29"),
    ("gradients not shared between ranks", "distributed.py",
     "return nullcontext() if last or self.size == 1 else", "return nullcontext() if not last or "
     "self.size == 1 else", "test_faults.py -k f31_ranks_give"),
    ("evaluation padded with a frame twice", "evaluate.py",
     "own.copy_(scores[: len(own)])",
     "own.copy_(scores[: len(own)])\n        probabilities[start].copy_(scores[0])",
     "test_faults.py -k f31_ranks_give"),
    ("ranks draw alike", "train.py",
     'augment.generator(args.seed, self.epochs, micro, world.rank)',
     'augment.generator(args.seed, self.epochs, micro)',
     "test_faults.py -k f31_ranks_draw"),
    ("a signal is one rank's alone", "distributed.py",
     'number, due = self.reduce(torch.tensor([self.signal or 0, int(due)]), "max").tolist()',
     "number = self.signal", "test_faults.py -k f32_one_signal"),
    ("rank 0's weights not given to the others", "distributed.py",
     "            dist.broadcast(tensor, 0)\n", "            pass\n",
     "test_faults.py -k f31_a_run"),
    ("BGR", "decoding.py",
     "return np.array(image)\n", "return np.array(image)[:, :, ::-1].copy()\n",
     "test_decoding.py -k decode"),
    ("EXIF rotation ignored", "decoding.py",
     "image = ImageOps.exif_transpose(image)", "pass", "test_decoding.py -k exif"),
    ("no size limit before decoding", "decoding.py",
     "if width * height > MAX_PIXELS:", "if False:", "test_decoding.py"),
    ("8 bits in a box of 32 are black", "decoding.py",
     "levels if most <= 255 else levels >> 8", "levels >> 8", "test_decoding.py -k whole_numbers"),
    ("a large JPEG decoded whole", "decoding.py",
     "image.draft(None, reduced)", "pass", "test_decoding.py -k beyond_the_limit"),
    ("a PNG decoded for its size", "decoding.py",
     "Image.Image.getexif(image)", "image.getexif()", "test_decoding.py -k upright_size"),
    ("frames smaller than the report's reduced", "data.py",
     "max(SHOWN, SHOWN * size // SIZE)", "SHOWN * size // SIZE", "test_data.py -k large_frame"),
    ("a reduced label map upside down", "data.py",
     "return label_map[rows][:, columns]", "return label_map[rows[::-1]][:, columns]",
     "test_data.py -k large_frame"),
    ("labels between commas are one class", "layouts.py",
     'LABEL_SEPARATORS = "|;,"', 'LABEL_SEPARATORS = "|"', "test_layouts.py -k people"),
    ("a missing value is a class", "layouts.py",
     "if name in known or name not in NO_LABEL", "if name", "test_layouts.py -k people"),
    ("rows of one file lose their labels", "layouts.py",
     "before.labels.extend(", "[].extend(", "test_layouts.py -k people"),
    ("UTF-16 is read as UTF-8", "layouts.py",
     "utf16 = start in", "utf16 = start not in", "test_layouts.py -k people"),
    ("one of two files of a name taken", "layouts.py",
     "if len(fitting) > 1:", "if False:", "test_layouts.py -k plain_meaning"),
    ("a column that nobody filled in is read as 0", "layouts.py",
     "missing = [name for name in known if name not in classes]", "missing = []",
     "test_evaluate.py -k does_not_know"),
    ("hidden pictures are frames", "layouts.py",
     'if name.startswith("."):', "if False:", "test_layouts.py -k without_labels"),
    ("the split of a name moves with its folder", "layouts.py",
     "name, root = name.removeprefix(start), folder", "root = folder", "test_layouts.py -k hash"),
    ("is_valid upside down", "layouts.py",
     'value == (column == "is_train")', 'value != (column == "is_train")',
     "test_layouts.py -k people"),
    ("rows that a quotation mark swallows are labels", "layouts.py",
     "(name and not is_name(name))", '(name and not is_name(name.replace("\\n", "")))',
     "test_layouts.py -k plain_meaning"),
    ("a link to a frame is another frame", "layouts.py",
     "file = os.path.realpath(row.path)", "file = os.path.abspath(row.path)",
     "test_layouts.py -k any_link"),
    ("folders that are linked in a circle are read for ever", "layouts.py",
     "followed.add(target)", "pass", "test_layouts.py -k linked"),
    ("frames that were trained on not told", "evaluate.py",
     "    if count:\n        print", "    if False:\n        print",
     "test_evaluate.py -k told_in_any"),
    ("labels left out of the fingerprint of frames", "data.py",
     "digest.update(self.labels", "(self.labels", "test_train.py -k resume_knows"),
    ("a cut list resumed", "checkpoint.py",
     'if differing and resume != "override":', "if False:", "test_train.py -k resume_knows"),
    ("a best of other validation frames kept", "train.py",
     'if trainer.best["epoch"] and saved[', "if False and saved[",
     "test_train.py -k resume_knows"),
    ("a check of headers is remembered as one of images", "data.py",
     'if found is not recalled and found["decoded"]:', "if found is not recalled:",
     "test_train.py -k long_check"),
    ("the frames of the training scored with those held out", "evaluate.py",
     'if split == "all" and dataset.labels is not None:', "if False:",
     "test_evaluate.py -k without_splits"),
    ("weights in place of their average", "weights.py",
     'KEYS += ["state_dict"', 'KEYS[:0] = ["state_dict"', "test_weights.py"),
    ("paths may leave the folder", "layouts.py",
     '".." in path.split("/")', "False", "test_data.py -k problems"),
    ("train and val may overlap", "data.py",
     "            if file in place\n", "            if False\n", "test_data.py"),
    ("a check of files that forgets their times", "data.py",
     "\\0{seen.st_size}\\0{seen.st_mtime_ns}\\0", "\\0{seen.st_size}\\0",
     "test_data.py -k only_a_time"),
    ("label 0 as padding of label maps", "data.py",
     "padded(maps, NONE)", "padded(maps, 0)", "test_data.py -k collate"),
    ("label 0 where a crop leaves the frame", "augment.py",
     "masked_fill_(~inside, data.NONE)", "masked_fill_(~inside, 0)", "test_augment.py -k label"),
    ("the padding of a frame sampled", "augment.py",
     "margin = torch.where(frame < array, 2**-10, 0.0)", "margin = 0 * frame",
     "test_augment.py -k padding"),
    ("a crop redrawn until it is empty", "augment.py",
     "< data.NONE).byte().argmax(1)", "== data.NONE).byte().argmax(1)",
     "test_augment.py -k empty_crops"),
    ("rows augmented with the draws of others", "augment.py",
     "[parameter[rows] for parameter", "[parameter[: len(rows)] for parameter",
     "test_augment.py -k ops_do_not"),
    ("a hole too many", "augment.py",
     ">= holes[:, None]", "> holes[:, None]", "test_augment.py -k closed_forms"),
    ("every step waits for the GPU", "train.py",
     'self.norm += norm.nan_to_num(0, 0)', 'self.norm += norm.item()',
     "test_train.py -k pretended"),
    ("the device cuda made current without its number", "distributed.py",
     'if ":" in args.device:', 'if "cuda" in args.device:', "test_train.py -k pretended"),
    ("a resume with the old learning rate", "train.py",
     '        restore = functools.partial', '        self.optimizer.load_state_dict('
     'state["optimizer"])\n        restore = functools.partial',
     "test_train.py -k overridden"),
    ("F1 of the means, not mean of the F1", "metrics.py",
     '        return tuple(_exact_mean(*fraction, zero_division) for fraction in fractions)',
     '        p, r, _ = (_exact_mean(*fraction, zero_division) for fraction in '
     'fractions)\n        return p, r, 2 * p * r / max(p + r, 1e-9)',
     "test_metrics.py"),
    ("a threshold is exclusive", "metrics.py",
     "pred = scores >= threshold", "pred = scores > threshold", "test_metrics.py"),
    ("SE by the maximum", "model.py",
     'torch.mean if pool == "avg" else torch.amax', "torch.amax", "test_model.py -k features"),
    ("SE without its activation", "model.py",
     "        hidden = self.act(hidden)\n", "", "test_model.py -k squeeze"),
    ("SAME padding's odd pixel before the map", "model.py",
     "return total // 2, total - total // 2", "return total - total // 2, total // 2",
     "test_model.py -k features"),
    ("stochastic depth that does not rise", "model.py",
     "drop_connect * index / sum(self.repeats)", "drop_connect", "test_model.py -k drop_connect"),
    ("BN eps of PNASNet", "model.py",
     "partial(nn.BatchNorm2d, eps=1e-3)", "partial(nn.BatchNorm2d, eps=1e-5)",
     "test_model.py -k features"),
    ("missing and unexpected keys accepted", "weights.py",
     "    if lists:\n", "    if False:\n", "test_weights.py -k error_lists"),
    ("code in a weights file runs", "schema.py",
     'torch.load(file, map_location="cpu", weights_only=True)',
     'torch.load(file, map_location="cpu", weights_only=False)', "test_weights.py -k code"),
    ("frozen BN moves", "model.py",
     "module.training = module.training and not self.frozen(name, module)", "pass",
     "test_model.py -k frozen"),
    ("prior bias left out", "model.py",
     "    last.bias.copy_(", "    last.bias.clone().copy_(", "test_model.py -k prior"),
    ("mask a group of eight off by one", "mish_kernel.py",
     "words = philox(seed, offset, group)", "words = philox(seed, offset, group + 1)",
     "test_mish_kernel.py -k mask"),
    ("leftover temporary files not removed", "checkpoint.py",
     "            stale.unlink()\n", "", "test_checkpoint.py -k leftovers"),
    ("a resume takes other flags", "checkpoint.py",
     "        if differing:\n", "        if False:\n", "test_checkpoint.py -k other_flags"),
    ("an epoch twice in the log", "checkpoint.py",
     'if not old or old["epoch"] < row["epoch"]]', "]", "test_checkpoint.py -k log"),
    ("a second last.pt makes the spare name stay", "checkpoint.py",
     "        temporary.unlink(missing_ok=True)", "        pass",
     "test_faults.py -k f11"),
    ("an output folder that cannot be made is a traceback", "checkpoint.py",
     'raise CheckpointError(f"{folder}: {error.strerror} – choose', 'raise TypeError(f"choose',
     "test_checkpoint.py -k cannot_be_made"),
    ("weights are fetched unasked", "flags.py",
     '"weights": "none", "image_size": 64, "augment"',
     '"weights": "imagenet", "image_size": 64, "augment"', "test_faults.py -k f10"),
    ("random weights where a flag asks for published ones", "flags.py",
     'and "weights" not in given', "", "test_train.py -k network"),
    ("a resume asks again for weights that the run did without", "train.py",
     'scratch = saved["args"].get("weights") == "none"', "scratch = False",
     "test_train.py -k network"),
    ("a wrong file taken for a host out of reach", "weights.py",
     "failure = WeightsError", "failure = Unreachable", "test_weights.py -k wrong_file"),
    ("a host that gives no answer is waited for", "weights.py",
     "answers.get(timeout=CONNECT)", "answers.get()", "test_weights.py -k wrong_file"),
    ("the rarest label as the constant answer", "metrics.py",
     "int(frequency.argmax())", "int(frequency.argmin())", "test_metrics.py -k constant"),
    ("the constant answer of the validation labels", "train.py",
     '    trainer = make_trainer(args, saved, training, validation, world)\n',
     '    trainer = make_trainer(args, saved, training, validation, world)\n    '
     'trainer.about["frequency"] = validation.labels.mean(0)\n',
     "test_train.py -k constant"),
    ("the warm-up left out", "train.py",
     "warm = min(1, (step + 1) / (args.warmup * steps_per_epoch + 1))", "warm = 1",
     "test_train.py -k warm_up"),
    ("an average that begins with its full decay", "train.py",
     'decay = min(self.args.ema, (1 + n) / (10 + n))', 'decay = self.args.ema',
     "test_flags.py -k ema"),
    ("all images mirrored", "augment.py",
     "generator=generator) < 0.5  # (B,)", "generator=generator) < 2", "test_augment.py -k mirror"),
    ("a web page taken for a damaged file", "layouts.py",
     '.startswith(b"<")', '.startswith(b"<<")', "test_weights.py -k damaged"),
    ("a log that cannot be written ends the run", "train.py",
     "kept(run.log, line)", "run.log(line)", "test_faults.py -k f12"),
    ("a second Ctrl-C does nothing", "distributed.py",
     "            os._exit(130)\n", "            pass\n", "test_faults.py -k f16"),
    ("an image that vanishes is a traceback from a worker", "distributed.py",
     'if "Original Traceback" in text:', "if False:", "test_train.py -k vanishes"),
    ("a damaged image ends the check", "decoding.py",
     "except Exception as error:  # Pillow", "except OSError as error:  # Pillow",
     "test_decoding.py -k damaged_bytes"),
    ("a short batch dropped", "data.py",
     "for group in groups]", "for group in groups if len(group) == span]",
     "test_faults.py -k f27"),
    ("out of memory is a traceback", "distributed.py",
     'isinstance(error, (MemoryError, torch.OutOfMemoryError))', 'isinstance(error, MemoryError)',
     "test_faults.py -k f28"),
    ("a killed worker is a traceback", "distributed.py",
     'if "DataLoader" in text:', 'if False:',
     "test_train.py -k killed_worker"),
    ("the order depends on the workers", "train.py",
     'data.order(len(self.training), args.seed, self.epochs)',
     'data.order(len(self.training), args.seed + args.workers, self.epochs)',
     "test_faults.py -k f30"),
    ("a rank that another has left is a traceback", "distributed.py",
     'if isinstance(error, dist.DistError) or "gloo" in text:', "if False:",
     "test_faults.py -k f32_one_failing"),
    ("ASCII terminals break the printing", "distributed.py",
     'reconfigure(line_buffering=True, errors="replace")', "reconfigure(line_buffering=True)",
     "test_faults.py -k f33"),
    ("the start is not seeded", "train.py",
     "    seed_everything(args.seed)\n", "", "test_train.py -k same_run_twice"),
    ("a flag without help", "flags.py",
     '"passes over the training frames"', '""', "test_flags.py -k help"),
    ("help tells the report's defaults alone", "flags.py",
     "    if name in DEMO:\n", "    if False:\n", "test_flags.py -k help"),
    ("a flag left out of the command line that is printed", "flags.py",
     'for flag in [*names, "--with"]:', "for flag in names:", "test_flags.py -k printed"),
    ("eight rounds of Philox in the kernel", "mish_kernel.py",
     "n_rounds=7", "n_rounds=8", "test_mish_kernel.py -k interpreter"),
    ("eight rounds of Philox on a CPU", "mish_kernel.py",
     "    for _ in range(7):\n", "    for _ in range(8):\n", "test_mish_kernel.py -k philox"),
    ("one exponential for bf16 too", "mish_kernel.py",
     "    if dtype == tl.float16:\n", "    if True:\n", "test_mish_kernel.py -k interpreter"),
    ("a head exported with its kernels", "mish_kernel.py",
     "    if torch.compiler.is_exporting():\n        return False\n", "", "test_export.py -k head"),
    ("right and wrong told by their colours alone", "pictures.py",
     "[[(0, 0), (8, 8)], [(0, 8), (8, 0)]]", "[[(0, 4), (3, 8), (8, 0)]]",
     "test_pictures.py -k signs"),
    ("a preview of an op on a crop", "augment.py",
     'if name not in ("scale", "crop"):', "if False:", "test_augment.py -k preview"),
    ("any generator taken", "augment.py",
     'if not isinstance(generator, torch.Generator) or generator.device.type != "cpu":',
     "if False:", "test_augment.py -k generator"),
    ("a README command with a flag that does not exist", "README.md",
     "--data mine.csv", "--dataset mine.csv", "test_readme.py"),
    ("kept values not scaled by 1 / (1 - p)", "mish_kernel.py",
     "keep_mask(x, rng, drop), out * scale", "keep_mask(x, rng, drop), out * 1.0",
     "test_mish_kernel.py"),
    ("a lane at the threshold dropped", "mish_kernel.py",
     "lanes.flatten()[: x.numel()] >= drop", "lanes.flatten()[: x.numel()] > drop",
     "test_mish_kernel.py -k at_the_threshold"),
    ("a lane at the threshold dropped by the kernel", "mish_kernel.py",
     "keep = lanes.reshape(BLOCK) >= DROP", "keep = lanes.reshape(BLOCK) > DROP",
     "test_mish_kernel.py -k interpreter"),
    ("a shared buffer refilled while a product reads it", "mish_kernel.py",
     """            dw2 = tl.dot(d.T, h, dw2)
            db1 += tl.dot(d, w2) * g.to(tl.float32)
""", """            db1 += tl.dot(d, w2) * g.to(tl.float32)
            dw2 = tl.dot(d.T, h, dw2)
""", "test_mish_kernel.py -k spills"),
    ("a class that only pads counted in the loss", "mish_kernel.py",
     "other=-1e4", "other=0.0", "test_mish_kernel.py -k interpreter"),
    ("a ticket taken before the program's stores", "mish_kernel.py",
     "    tl.debug_barrier()\n", "", "test_mish_kernel.py -k no_more"),
    ("a threshold that is given and not taken", "evaluate.py",
     'return weights, args.threshold, "given"', 'return weights, threshold, "given"',
     "test_evaluate.py -k given"),
    ("no least number of labels", "evaluate.py",
     "metrics.decide(probabilities, threshold, args.min_labels)",
     "metrics.decide(probabilities, threshold)", "test_evaluate.py -k given"),
    ("a predictor that begins with the least likely", "evaluate.py",
     "key=lambda pair: -pair[1])", "key=lambda pair: pair[1])", "test_evaluate.py -k predictor"),
    ("a predictor that decides at a half", "evaluate.py",
     "pair[1] >= self.threshold", "pair[1] >= 0.5", "test_evaluate.py -k predictor"),
    ("a predictor that forgets the last batch", "evaluate.py",
     "range(0, len(images), BATCH_SIZE)", "range(0, len(images) - BATCH_SIZE + 1, BATCH_SIZE)",
     "test_evaluate.py -k predictor"),
    ("a naming told by a key of another one", "weights.py",
     'if any(key.startswith(start) for key in state_dict):', "if state_dict:",
     "test_weights.py -k follows"),
    ("an option of another network taken", "model.py",
     "if option not in known:", "if False:", "test_model.py -k options_are_checked"),
    ("a checkpoint's own colours forgotten", "model.py",
     "        net.input_config |= source.input_config\n", "", "test_flags.py -k own_colours"),
    # What stands in files.
    ("a tensor of another shape taken", "schema.py",
     "if given.shape != own.shape or given", "if given", "test_schema.py -k leaf"),
    ("a tensor of another dtype taken", "schema.py",
     " or given.dtype != own.dtype:", ":", "test_schema.py -k misfit"),
    ("elements that overlap in memory taken", "schema.py",
     "if span < value.numel():", "if False:", "test_schema.py -k leaf"),
    ("numbers that are not finite taken", "schema.py",
     "if lowest <= least and most <= HUGE:", "if True:", "test_schema.py -k leaf"),
    ("layouts of which nothing can be copied taken", "schema.py",
     "is_plain = value.layout is torch.strided and not value.is_nested", "is_plain = True",
     "test_weights.py -k no_network"),
    ("a key too many taken", "schema.py",
     "        if name not in allowed:\n", "        if False:\n", "test_schema.py -k misfit"),
    ("rules of a checkpoint left out", "checkpoint.py",
     "schema.fault(state, RULES) or ", "", "test_schema.py -k leaf"),
    ("flags of a checkpoint that its network does not have", "checkpoint.py",
     "        if args.get(name) != said[name]:\n", "        if False:\n",
     "test_checkpoint.py -k disagree"),
    ("a misfit only half copied", "checkpoint.py",
     "    refuse_misfit(path, key, given, own)\n    schema", "    schema",
     "test_schema.py -k leaf"),
    ("a head that is none dropped", "weights.py",
     "found.keys() != head.keys() or found[last_bias] != head[last_bias]", "found != head",
     "test_weights.py -k as_many_classes"),
    ("weights that are no tensors of numbers taken", "weights.py",
     "if wrong := schema.tensor_fault(value, key):", "if wrong := None:",
     "test_weights.py -k no_network"),
    ("what a file says of its images taken", "weights.py",
     "if inputs and (wrong := schema.fault", "if False and (wrong := schema.fault",
     "test_weights.py -k of_its_images"),
    ("packed parts unpacked", "schema.py",
     "if unpacked > size:", "if False:", "test_checkpoint.py -k packed"),
    ("torch's advice to run the code", "schema.py",
     'str(error).partition("Weights only load failed")[0]', "str(error)",
     "test_checkpoint.py -k advice"),
    ("any blend taken", "evaluate.py",
     "if wrong := schema.fault(blend, BLEND):", "if wrong := None:", "test_evaluate.py -k blend"),
    ("PostScript handed to Ghostscript", "decoding.py",
     "Image.open(source, formats=formats())", "Image.open(source)", "test_decoding.py -k document"),
    ("sides without a limit", "decoding.py",
     "if max(width, height) > MAX_SIDE:", "if False:", "test_decoding.py -k sides"),
    ("a link to nowhere is no classes.txt", "layouts.py",
     "    if not os.path.lexists(file):\n        return None", "    if not os.path.exists(file):\n"
     "        return None", "test_layouts.py -k passed_over"),
    ("a server's escapes printed", "weights.py",
     'schema.visible(" ".join(str(error).split()))', '" ".join(str(error).split())',
     "test_weights.py -k servers"),
    ("a living download's part removed", "weights.py",
     "> 2 * TIMEOUT:", "> -1:", "test_weights.py -k killed_download"),
    # What is lost.
    ("last.pt before the best.pt that it names", "checkpoint.py",
     "            write(self.best, self.unwritten)\n            named = "
     "self.unwritten[1][-64:].decode()\n",
     "            named = self.unwritten[1][-64:].decode()\n            save(self.last, state | "
     '{"best_sha256": named})\n            write(self.best, self.unwritten)\n',
     "test_faults.py -k f1_"),
    ("the best before not kept until last.pt is written", "checkpoint.py",
     "                _keep_as_previous(self.best)\n", "                pass\n",
     "test_faults.py -k f1_"),
    ("a best that last.pt does not name kept in its place", "checkpoint.py",
     "if self.named and sha256_in(self.best) == self.named:", "if self.named:",
     "test_faults.py -k f11"),
    ("an abandoned best scored", "checkpoint.py",
     "            os.replace(previous, self.best)\n", "            pass\n",
     "test_faults.py -k abandoned"),
    ("a best epoch without room forgotten", "checkpoint.py",
     "        if self.unwritten:\n", "        if is_best:\n", "test_faults.py -k as_soon_as"),
    ("foreign lines of a log dropped", "checkpoint.py",
     'if not old or old["epoch"] < row["epoch"]]', 'if old and old["epoch"] < row["epoch"]]',
     "test_checkpoint.py -k stays_in_the_log"),
    ("a full disk under the log ends the training", "distributed.py",
     "            self.error = error\n            return len(text)\n", "            raise\n",
     "test_faults.py -k f12"),
    ("lost lines not told", "distributed.py",
     "                code = code or 5\n", "", "test_faults.py -k f12"),
    ("a signal after the last batch swallowed", "distributed.py",
     "        self.polled = self.rank > 0\n        self.heed()\n", "", "test_faults.py -k f15"),
    ("other threads not told", "checkpoint.py",
     "args.threads == before:", "True:", "test_faults.py -k threads"),
    ("a step that does not fit not told", "progress.py",
     "    if needed < free:\n", "    if True:\n", "test_faults.py -k f28"),
    ("numbers without a limit", "flags.py",
     "not rule.holds(each)", "False", "test_flags.py -k bound"),
    ("a rank outside the size", "distributed.py",
     "if not local_rank <= rank < size:", "if False:", "test_faults.py -k f32_variables"),
    # What stands in files, and testers found.
    ("attributes of a pickle stand for methods", "schema.py",
     'plain(torch.load(file, map_location="cpu", weights_only=True), {})',
     'torch.load(file, map_location="cpu", weights_only=True)', "test_schema.py -k attributes"),
    ("a second list of parts believed", "schema.py",
     "if any(entry.compress_type for entry in entries) or", "if False and",
     "test_weights.py -k two_lists"),
    ("a matrix in another file read", "data.py",
     'None if is_link else file["reS_id"]', 'file["reS_id"]', "test_data.py -k own_file"),
    ("scans without end", "decoding.py",
     "    if scans > MAX_SCANS:\n", "    if False:\n", "test_decoding.py -k scans"),
    ("escapes in the names of classes", "layouts.py",
     "if is_open or (name and not is_name(name)):", "if is_open:", "test_layouts.py -k printed"),
    ("another run's best reported", "train.py",
     "if trainer.epochs >= args.epochs and not", "if False and not",
     "test_faults.py -k no_epoch_is_left"),
    ("a signal while an error is told is a traceback", "distributed.py",
     "        world.polled = None\n        code, line = diagnose", "        code, line = diagnose",
     "test_faults.py -k small_window"),
    ("a batch larger than all frames", "progress.py",
     "batch = min(args.batch_size, math.ceil(frames / args.ranks))", "batch = args.batch_size",
     "test_faults.py -k f28"),
    ("a dollar begins a formula", "pictures.py",
     "text.set_parse_math(False)", "pass", "test_pictures.py -k dollar"),
    ("lost lines fail once more at the end", "distributed.py",
     "os.dup2(none.fileno(), outlet.fileno())", "pass", "test_faults.py -k f12"),
    ("a notebook's stream reconfigured", "distributed.py",
     'if hasattr(out, "reconfigure"):', "if True:", "test_train.py -k notebook"),
    ("a caption that runs into the next picture", "pictures.py",
     "while pen.textlength(text) > room and", "while False and", "test_pictures.py -k caption"),
    ("counters of graphs given back", "mish_kernel.py",
     "BLOCKS.append(block)", "pass", "test_mish_kernel.py -k counters"),
    ("a stream's counter zeroed on another", "mish_kernel.py",
     "TICKETS[key] = x.new_zeros(1, dtype=torch.int32)", "TICKETS[key] = spare.pop()",
     "test_mish_kernel.py -k counters"),
    ("a kernel for each counter's address", "mish_kernel.py",
     '"offset", "B", "ticket_ptr"]', '"offset", "B"]', "test_mish_kernel.py -k kernel_of_its_own"),
    ("a name that is escaped in a line not found", "data.py",
     'start = in_a_line(f"{self.paths[i]}: ", layouts.LONGEST_PROBLEM)',
     'start = f"{self.paths[i]}: "',
     "test_data.py -k any_name"),
    ("a GPU that is not there", "distributed.py",
     "int(named[2] or 0) >= gpus > 0", "False", "test_flags.py -k gpu_that"),
    ("memory that CUDA's libraries lack is a bug", "distributed.py",
     "|CUDA error: out of memory|STATUS_ALLOC_FAILED", "", "test_faults.py -k f28"),
    ("memory that a container uses is free", "progress.py",
     "free.append(limit - used)", "pass", "test_faults.py -k f28"),
    ("a class that no checkpoint can name", "data.py",
     "        if not is_name(name):", "        if False:", "test_layouts.py -k refused_by_line"),
    ("a listed class that no checkpoint can name", "layouts.py",
     "        if not is_name(name):", "        if False:", "test_layouts.py -k refused_by_line"),
    ("vectors of two are labels", "layouts.py",
     "return are_vectors or have_decimals", "return have_decimals",
     "test_layouts.py -k refused_by_line"),
    ("decimal commas are labels", "layouts.py",
     "return are_vectors or have_decimals", "return are_vectors",
     "test_layouts.py -k refused_by_line"),
    ("numbers between bars are decimals", "layouts.py",
     'have_decimals = separator == "," and all(', "have_decimals = all(",
     "test_layouts.py -k mean_it"),
    ("copies in validation not told", "data.py",
     "if not copies:", "if True:", "test_layouts.py -k mean_it"),
    ("frames that end alike are copies", "data.py",
     "filecmp.cmp(path, other, shallow=False)", "True", "test_layouts.py -k one_name"),
    ("a split of frames without any", "data.py",
     "if is_whole and asked_for_one and not listing.problems:", "if False:",
     "test_layouts.py -k have_none"),
    ("a split that is none told before problems", "data.py",
     "if is_whole and asked_for_one and not listing.problems:", "if is_whole and asked_for_one:",
     "test_layouts.py -k problems_come"),
    ("a best without its last replaced", "checkpoint.py",
     'refuse_foreign(folder, ["best.pt", "last.prev.pt"], "last.pt")', "pass",
     "test_checkpoint.py -k of_no_run"),
    ("a loaded classifier's bias forgotten", "model.py",
     "    if net.knows_classes:", "    if False:", "test_train.py -k goes_on_with"),
    ("a classifier of other classes taken", "model.py",
     "source.class_names != class_names:", "False:", "test_train.py -k goes_on_with"),
    ("frames trained on before not told", "train.py",
     "evaluate.warn_of_seen(args.out", "(lambda *_: 0)(args.out",
     "test_train.py -k trained_on_before"),
    ("frames trained on before forgotten", "train.py",
     "torch.cat([training.identities(), seen]).unique()", "training.identities()",
     "test_train.py -k trained_on_before"),
    ("label maps are photographs", "layouts.py",
     "if len(parts) > 1 and missing:", "if False:", "test_layouts.py -k part_of_an_a2d"),
    ("scores of --min-labels not told", "evaluate.py",
     "        if args.min_labels:", "        if False:", "test_evaluate.py -k least_number"),
    ("a table called report.csv replaced by an evaluation", "evaluate.py",
     'checkpoint.refuse_foreign(folder, EVALUATION_FILES, "predictions.csv")', "pass",
     "test_evaluate.py -k nothing_else"),
    ("a training's report replaced by an evaluation", "evaluate.py",
     "if Path(folder, sign).exists():", "if False:", "test_evaluate.py -k nothing_else"),
    ("files of an earlier evaluation not told", "evaluate.py",
     "before.get(name) == when", "False", "test_evaluate.py -k nothing_else"),
    ("an assumed flavour not said", "weights.py",
     'return flavour, naming == "ours" or', "return flavour, False and",
     "test_weights.py -k flavour_follows"),
]  # fmt: skip


class Mutant(NamedTuple):
    name: str
    file: str
    text: str | None  # of the file with the mistake; None: the place of it is gone
    tests: list  # arguments of pytest


def listed(words):
    """The mutants of FAULTS whose name has one of the words; all without words."""
    for name, file, old, new, tests in FAULTS:
        if words and not any(word in name for word in words):
            continue
        text = (ROOT / file).read_text("utf-8")
        changed = text.replace(old, new, 1) if old in text else None
        test_file, *selection = tests.split()
        yield Mutant(name, file, changed, [f"tests/{test_file}", *selection])


def at_random(number, seed, files, tests):
    """Mutants at places drawn evenly from all places of the files, in the order of the files;
    tests is an expression of pytest's -k."""
    places = []
    for file in files:
        text = (ROOT / file).read_text("utf-8")
        places += [(file, *mutation) for mutation in mutations(text)]
    chosen = sorted(random.Random(seed).sample(range(len(places)), min(number, len(places))))
    for file, line, description, text in (places[i] for i in chosen):
        arguments = [*importers(Path(file).stem), "-k", tests]
        yield Mutant(f"line {line}: {description}", file, text, arguments)


def importers(module):
    """The test files that import the module: its own first, those of many whole runs last."""
    pattern = re.compile(rf"^(import|from) {module}\b", re.M)

    def place(file):
        return file.stem in ("test_faults", "test_train"), file.stem != f"test_{module}", file.stem

    files = sorted((ROOT / "tests").glob("test_*.py"), key=place)
    return [f"tests/{f.name}" for f in files if pattern.search(f.read_text("utf-8"))]


class FirstFailure:
    """A pytest plugin: the first failure ends the process, and so does a test that hangs."""

    def __init__(self, file):
        self.file = file

    def end(self, text):
        self.file.write_text(text)
        os._exit(1)

    def pytest_runtest_logstart(self, nodeid):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        self.file.write_text(f"{nodeid} (hangs)")
        signal.alarm(TEST_SECONDS)

    def pytest_runtest_logreport(self, report):
        if report.failed:
            self.end(report.nodeid)

    def pytest_collectreport(self, report):
        if report.failed:
            self.end(f"{report.nodeid} (import)")

    def pytest_sessionfinish(self, exitstatus):
        if exitstatus not in (0, 1):
            self.end(f"pytest ends with {int(exitstatus)}")
        signal.alarm(0)
        self.file.write_text("")


def start(mutant, folder):
    """The process that tries a mutant in a copy of the project, and leaves folder/first."""
    copy = folder / "project"
    left_out = shutil.ignore_patterns(".git", "runs", "venv", "__pycache__")
    shutil.copytree(ROOT, copy, ignore=left_out)
    (copy / mutant.file).write_text(mutant.text, "utf-8")
    sys.stdout.flush()
    process = os.fork()
    if process == 0:
        try:
            run_tests(mutant.tests, copy, folder)
        finally:
            os._exit(0)
    return process


def run_tests(tests, copy, folder):
    """Runs pytest in this process, as in a fresh one whose folder is the copy."""
    os.setsid()
    with open(folder / "output", "w") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    os.chdir(copy)
    os.environ["A2D_DEMO_CACHE"] = str(folder / "cache")
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    sys.dont_write_bytecode = True
    sys.path = [str(copy), *(entry for entry in sys.path if entry not in ("", str(ROOT)))]
    for name in [name for name in sys.modules if name.partition(".")[0] == "tests"]:
        del sys.modules[name]
    flags = ["-q", "--tb=short", "-n", "0", "--basetemp", str(folder / "temporary")]
    pytest.main([*flags, *tests], plugins=[FirstFailure(folder / "first")])


def tried(mutants, jobs):
    """Yields (mutant, the test that noticed it, "" for none, None for a place that is gone)."""
    running = {}
    mutants = iter(mutants)
    try:
        while True:
            while len(running) < jobs and (mutant := next(mutants, None)):
                if mutant.text is None:
                    yield mutant, None
                    continue
                folder = Path(tempfile.mkdtemp(prefix="mutant-"))
                running[start(mutant, folder)] = mutant, folder
            if not running:
                return
            process, _ = os.wait()
            mutant, folder = running.pop(process)
            end(process)
            found = folder / "first"
            yield mutant, found.read_text() if found.exists() else "(no test began)"
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        for process, (_, folder) in running.items():
            end(process)
            shutil.rmtree(folder, ignore_errors=True)


def end(process):
    """A mutant's process, and what its tests have started."""
    with suppress(ProcessLookupError):
        os.killpg(process, signal.SIGKILL)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("words", nargs="*", help="of names; with --random: files [all modules]")
    parser.add_argument("--random", type=int, metavar="N", help="mechanical mistakes, drawn")
    parser.add_argument("--seed", type=int, default=0, help="of the draws [0]")
    parser.add_argument("-k", default="", help="with --random: which tests, as pytest's [all]")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="at once [the cores]")
    args = parser.parse_args(argv)
    if args.random:
        files = args.words or [f"{module}.py" for module in MODULES]
        mutants = list(at_random(args.random, args.seed, files, args.k))
    else:
        mutants = list(listed(args.words))

    # once, here, and not in each of the processes
    import matplotlib.figure  # noqa: F401
    import sklearn.metrics  # noqa: F401
    import timm  # noqa: F401
    import torchvision  # noqa: F401

    began, unnoticed = time.monotonic(), []
    print("| mistake | in | noticed by |\n|---|---|---|")
    for mutant, test in tried(mutants, args.jobs):
        if not test:
            unnoticed.append(mutant)
        shown = "**its text is gone**" if test is None else NOTHING
        if test:
            shown = "`" + test.removeprefix("tests/").replace("|", "/") + "`"
        print(f"| {mutant.name} | {mutant.file} | {shown} |", flush=True)
    noticed = len(mutants) - len(unnoticed)
    print(f"\n{noticed} of {len(mutants)} noticed, {time.monotonic() - began:.0f} s")
    for mutant in unnoticed:
        print(f"{NOTHING} noticed: {mutant.file} {mutant.name}")
    return int(bool(unnoticed) and not args.random)


if __name__ == "__main__":
    sys.exit(main())
